# SPDX-License-Identifier: Apache-2.0
"""Rendered toys in MAD's layout: correct poses, exact masks, equal files for equal seeds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_dilation

from anomalib_pose.geometry import Camera, mad_lattice, rotation_angle
from anomalib_pose.render.mesh_lighting import Light, bake_light, render_mesh
from anomalib_pose.sample_data import build_toy, write_mad
from anomalib_pose.sample_data.bricks import brick, cylinder, prism, revolve, stud, subdivide
from anomalib_pose.sample_data.defects import DEFECTS

SIZE, VIEWS, GOOD, BAD, SEED = 48, 6, 2, 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("sample"))


def make(out: Path, category: str = "rocket", **changes: object) -> Path:
    options = {"views": VIEWS, "test_good": GOOD, "test_per_defect": BAD, "progress": False, **changes}
    return write_mad(out, category, SEED, SIZE, **options)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def camera_of(matrix: list[list[float]], angle: float) -> Camera:
    pose = torch.tensor(matrix, dtype=torch.float64)
    intrinsics = Camera.from_fov(pose, angle, SIZE, SIZE).K
    return Camera.from_opengl(pose, intrinsics, SIZE, SIZE)


def hidden(folder: Path) -> dict:
    return json.loads((folder.parent / "_hidden" / f"{folder.name}.json").read_text())


def test_layout_is_that_of_mad(folder: Path) -> None:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {"transforms.json"} | {f"train/good/{i}.png" for i in range(VIEWS)}
    expected |= {f"test/good/{i}.png" for i in range(GOOD)}
    for kind in ("Burrs", "Missing", "Stains"):
        expected |= {f"test/{kind}/{i}.png" for i in range(BAD)}
        expected |= {f"ground_truth/{kind}/{i}_mask.png" for i in range(BAD)}
    assert files == expected
    for path in folder.rglob("*.png"):
        image = read(path)
        assert image.dtype == np.uint8
        assert image.shape == ((SIZE, SIZE) if path.name.endswith("_mask.png") else (SIZE, SIZE, 3))
        if image.ndim == 3:
            assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_training_poses_are_on_the_lattice_and_see_the_toy(folder: Path) -> None:
    transforms = json.loads((folder / "transforms.json").read_text())
    assert transforms["camera_angle_x"] == pytest.approx(0.6911111611634243)
    assert [frame["file_path"] for frame in transforms["frames"]] == [f"./train/good/{i}.png" for i in range(VIEWS)]
    points = build_toy("rocket", SEED).mesh.vertices.double()
    lattice = mad_lattice(3.5)
    for frame in transforms["frames"]:
        camera = camera_of(frame["transform_matrix"], transforms["camera_angle_x"])
        assert float((lattice - camera.camera_to_world.float()).abs().amax((1, 2)).min()) < 1e-6
        uv, depth = camera.project(points)
        assert float(depth.min()) > 0
        covered = (read(folder / frame["file_path"]) < 255).any(2)
        projected = np.zeros_like(covered)
        projected[tuple(uv.floor().long().numpy().T[::-1])] = True
        assert not (projected & ~binary_dilation(covered)).any(), "a point of the toy fell on the background"
        # At this size nearly all pixels of the silhouette lie next to a vertex.
        assert (covered & ~binary_dilation(projected, iterations=2)).sum() <= 0.02 * covered.sum()


def test_rendering_at_test_poses_reproduces_the_good_test_images(folder: Path) -> None:
    toy, light, truth = build_toy("rocket", SEED), Light(), hidden(folder)
    baked = bake_light(toy.mesh, light)
    images = [image for image in truth["images"] if image["file"].startswith("test/good/")]
    assert truth["radius"] == 3.5
    assert [image["file"] for image in images] == [f"test/good/{i}.png" for i in range(GOOD)]
    for image in images:
        camera = camera_of(image["transform_matrix"], 0.6911111611634243)
        rendering = render_mesh(toy.mesh, camera, light, baked).rgb.numpy() * 255
        assert np.abs(rendering - read(folder / image["file"])).max() <= 1


def test_test_poses_are_off_the_lattice_and_on_the_upper_hemisphere(folder: Path) -> None:
    lattice = mad_lattice(3.5).double()
    for image in hidden(folder)["images"]:
        camera = camera_of(image["transform_matrix"], 0.6911111611634243)
        center, pose = camera.center, camera.camera_to_world
        assert float(center[2]) > 0
        assert float(center.norm()) == pytest.approx(3.5, rel=0.021)
        angle = rotation_angle(lattice[:, :3, :3], pose[:3, :3].expand(210, 3, 3))
        assert float(angle.min()) > 1e-3
        assert float(-(center / center.norm()) @ pose[:3, 2]) > np.cos(np.radians(1))


def test_masks_are_exactly_the_changed_pixels(folder: Path) -> None:
    toy, light = build_toy("rocket", SEED), Light()
    baked = bake_light(toy.mesh, light)
    images = {image["file"]: image for image in hidden(folder)["images"]}
    for kind in DEFECTS:
        for number in range(BAD):
            truth = images[f"test/{kind}/{number}.png"]
            camera = camera_of(truth["transform_matrix"], 0.6911111611634243)
            good = (render_mesh(toy.mesh, camera, light, baked).rgb * 255 + 0.5).to(torch.uint8).numpy()
            differs = (read(folder / truth["file"]) != good).any(2)
            mask = read(folder / "ground_truth" / kind / f"{number}_mask.png")
            assert set(np.unique(mask)) == {0, 255}
            np.testing.assert_array_equal(mask == 255, differs)
            assert 5 <= differs.sum() == truth["area_px"] <= 0.06 * SIZE**2


def test_equal_seeds_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    again = make(tmp_path)
    for path in [*folder.rglob("*.png"), folder / "transforms.json"]:
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes(), path.name
    assert hidden(folder) == hidden(again)


def test_existing_category_is_replaced_only_with_overwrite(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    (copy / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="overwritten"):
        make(tmp_path, test_per_defect=0)
    assert (copy / "mine.txt").exists()
    make(tmp_path, test_per_defect=0, views=1, overwrite=True)
    assert not (copy / "mine.txt").exists()
    assert len(list((copy / "train" / "good").iterdir())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_hidden", folder.name]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anomalib_pose.sample_data.views.write_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_brightness_varies_only_with_brightness_variation(folder: Path, tmp_path: Path) -> None:
    assert all(image["brightness"] == 1 for image in hidden(folder)["images"])
    varied = hidden(make(tmp_path, test_per_defect=0, views=1, brightness_variation=0.3))["images"]
    factors = [image["brightness"] for image in varied]
    assert len(set(factors)) == GOOD
    assert all(0.7 <= factor <= 1.3 for factor in factors)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"views": 211}, "views 211"), ({"radius": 1.0}, "got 1.0"), ({"category": "../x"}, "plain folder name")],
)
def test_invalid_arguments_are_named(tmp_path: Path, changes: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("category", ["car", "house", "rocket", "anything"])
def test_toys_are_colorful_and_centered_and_depend_on_the_seed(category: str) -> None:
    toy = build_toy(category, 1)
    low, high = toy.mesh.vertices.amin(0), toy.mesh.vertices.amax(0)
    torch.testing.assert_close(low, -high, atol=1e-5, rtol=0)
    assert 1.0 < float(toy.mesh.vertices.norm(dim=1).max()) < 1.2
    assert len({part.color for part in toy.parts}) >= 6
    assert sum(part.removable for part in toy.parts) >= 20
    assert len(toy.part) == len(toy.mesh.faces)
    torch.testing.assert_close(toy.mesh.normals.norm(dim=1), torch.ones(len(toy.mesh.normals)))
    different = build_toy(category, 2).mesh
    same = build_toy(category, 1).mesh
    assert torch.equal(same.vertices, toy.mesh.vertices)
    assert torch.equal(same.colors, toy.mesh.colors)
    assert different.colors.shape != same.colors.shape or not torch.equal(different.colors, same.colors)


@pytest.mark.parametrize(
    ("solid", "inside", "volume"),
    [
        (brick(0, 0, 0, 2, 1, 3, studs=False), (1.0, 0.5, 0.6), 1.96 * 0.96 * 1.18),
        (cylinder((1, 2, 3), 0.5, 1.0, "x", 64), (1.5, 2, 3), np.pi * 0.25),
        (cylinder((1, 2, 3), 0.5, -1.0, "y", 64), (1, 1.5, 3), np.pi * 0.25),
        (prism([(0, 0), (2, 0), (2, 1), (0, 2)], 0, 2), (1, 1, 0.5), 6.0),
        (prism([(0, 0), (2, 0), (2, 1), (0, 2)], 0, 2, "x"), (1, 1, 0.5), 6.0),
        (revolve([(0, 0), (1, 0), (0, 3)], (0, 0, 0), sides=128), (0, 0, 1), np.pi),
        (stud(0, 0, 0), (0, 0, 0), np.pi * 0.09 * 0.2),
    ],
)
def test_normals_point_out_of_solids_of_the_right_volume(solid, inside: tuple, volume: float) -> None:
    """The volume is the sum of a third of area times height over all faces; a wrong normal changes it."""
    for candidate in (solid, subdivide(solid, 0.3)):
        corners = candidate.vertices[candidate.faces]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal = candidate.normals[candidate.faces].mean(1)
        outwards = cross * np.sign((cross * normal).sum(1, keepdims=True))
        height = ((corners.mean(1) - np.array(inside)) * outwards).sum(1)
        assert height.sum() / 6 == pytest.approx(volume, rel=0.06)
        assert height.min() > -1e-9
    edges = np.linalg.norm(corners - np.roll(corners, 1, 1), axis=2)
    assert edges.max() <= 0.3
