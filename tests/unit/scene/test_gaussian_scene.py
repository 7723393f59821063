# SPDX-License-Identifier: Apache-2.0
import struct

import pytest
import torch

from anomalib_pose.scene import GaussianScene, Scene, load_ply, save_ply
from sample_scenes import CAMERA, make_scene, with_reflectance


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_a_scene_loads_a_checkpoint_of_another_count_and_degree(degree):
    scene = make_scene(40, degree)
    other = make_scene(7, 1, seed=1)
    other.load_state_dict(scene.state_dict())
    torch.testing.assert_close(other.render(CAMERA).rgb, scene.render(CAMERA).rgb)
    assert isinstance(other, Scene)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_round_trip(tmp_path, degree):
    scene = make_scene(12, degree)
    save_ply(scene, tmp_path / "object.ply")
    reloaded = load_ply(tmp_path / "object.ply", "cpu")
    for name, tensor in scene.named_buffers():
        torch.testing.assert_close(dict(reloaded.named_buffers())[name], tensor, rtol=0, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["object.ply"]


def test_ply_columns_have_the_order_of_viewers(tmp_path):
    """The test reads with struct alone, in the column order of the published files."""
    scene = make_scene(3, 1)
    save_ply(scene, tmp_path / "object.ply")
    data = (tmp_path / "object.ply").read_bytes()
    header, body = data.split(b"end_header\n", 1)
    names = [line.split()[-1].decode() for line in header.splitlines() if line.startswith(b"property")]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:18] == [f"f_rest_{i}" for i in range(9)]
    assert names[18:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    second = dict(zip(names, struct.unpack_from(f"<{len(names)}f", body, 4 * len(names)), strict=True))
    assert second["x"] == scene.means[1, 0].item()
    assert second["f_rest_4"] == scene.sh[1, 2, 1].item()  # channel by channel: green's second coefficient
    assert second["opacity"] == scene.logit_opacities[1].item()
    assert second["rot_0"] == scene.quats[1, 0].item()


def test_broken_ply_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ply"):
        load_ply(tmp_path / "none.ply")
    (tmp_path / "text.ply").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.ply is no \.ply"):
        load_ply(tmp_path / "text.ply")
    save_ply(make_scene(5, 0), tmp_path / "cut.ply")
    whole = (tmp_path / "cut.ply").read_bytes()
    (tmp_path / "cut.ply").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="cut short"):
        load_ply(tmp_path / "cut.ply")
    (tmp_path / "mesh.ply").write_bytes(
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nend_header\n" + bytes(4)
    )
    with pytest.raises(ValueError, match="holds no Gaussians"):
        load_ply(tmp_path / "mesh.ply")


def test_rendering_an_empty_scene_is_refused():
    with pytest.raises(ValueError, match="holds no Gaussians"):
        GaussianScene(0, "cpu").render(CAMERA)


def test_raw_values_are_checked():
    raw = make_scene(4, 0).raw
    with pytest.raises(ValueError, match="means should be finite"):
        GaussianScene(0).set_raw(raw | {"means": torch.full((4, 3), float("nan"))})
    with pytest.raises(ValueError, match="got means"):
        GaussianScene(0).set_raw({"means": raw["means"]})


def test_center_and_extent_ignore_stray_parts():
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(1000, 3, generator=generator), dim=-1)
    scene = make_scene(1001, 0)
    scene.means = torch.cat([torch.tensor([1.0, 2, 3]) + 0.5 * direction, torch.full((1, 3), 100.0)])
    scene.logit_opacities = torch.ones(1001)
    assert (scene.center - torch.tensor([1.0, 2, 3])).norm() < 0.1
    assert 0.45 < scene.extent < 0.6


@pytest.mark.parametrize("degree", [0, 2])
def test_reflectance_renders_like_colors(degree):
    plain = make_scene(40, degree)
    scene = with_reflectance(plain)
    colors = GaussianScene(degree, "cpu")
    colors.set_raw(plain.raw | {"sh": scene.sh[..., 3:].clone()})
    assert scene.reflective
    assert not plain.reflective
    background = torch.tensor([0.9, 0.8, 0.7])
    torch.testing.assert_close(scene.render_reflectance(CAMERA, background).rgb, colors.render(CAMERA, background).rgb)
    torch.testing.assert_close(scene.render(CAMERA, background).rgb, plain.render(CAMERA, background).rgb)
    reloaded = make_scene(3, 1)
    reloaded.load_state_dict(scene.state_dict())
    torch.testing.assert_close(reloaded.render_reflectance(CAMERA).rgb, scene.render_reflectance(CAMERA).rgb)


def test_rendering_a_missing_reflectance_is_refused():
    with pytest.raises(ValueError, match="holds colors alone"):
        make_scene(4, 0).render_reflectance(CAMERA)


def test_ply_files_do_not_contain_reflectance(tmp_path):
    plain = make_scene(12, 1)
    save_ply(with_reflectance(plain), tmp_path / "object.ply")
    torch.testing.assert_close(load_ply(tmp_path / "object.ply", "cpu").sh, plain.sh, rtol=0, atol=0)
