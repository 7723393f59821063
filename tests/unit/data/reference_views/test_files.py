# SPDX-License-Identifier: Apache-2.0
"""Files of reference views: as published, without running pickles, and the same from the same seed."""

import json
import math
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data.reference_views.files import (
    find_reference_views,
    read_correspondences,
    read_views,
    spread_views,
)
from anomalib_pose.render.mesh import Mesh
from anomalib_pose.render.reference_views import reference_camera, render_reference_views
from anomalib_pose.sample_data.reference_writer import write_reference_views


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    generator = torch.Generator().manual_seed(0)
    corners = 0.5 * torch.rand((40, 1, 3), generator=generator) + 0.3 * torch.rand((40, 3, 3), generator=generator)
    return Mesh.flat(corners.reshape(-1, 3), torch.arange(120, dtype=torch.int32).reshape(-1, 3), torch.ones(40, 3))


@pytest.fixture(scope="module")
def folder(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference_views(mesh, tmp_path_factory.mktemp("views") / "mv", "7", views=3, seed=5, progress=False)


@pytest.fixture
def published(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published sample, in a place where the class that its files name cannot be imported."""
    monkeypatch.setitem(sys.modules, "trimesh", None)
    sample = shared / "data" / "looking3d_sample" / "mv_images"
    if not sample.is_dir():
        pytest.skip(f"the published sample is not at {sample}")
    return sample


def test_views_are_read_as_they_were_written(mesh: Mesh, folder: Path) -> None:
    names = [f"7_3.0_{azimuth}_20" for azimuth in (0, 120, 240)]
    suffixes = (".json", ".npy", ".png", "_depth.npy")
    assert sorted(path.name for path in folder.iterdir()) == sorted(n + s for n in names for s in suffixes)
    files = find_reference_views(folder)
    assert [file.image_path.stem for file in files] == names
    for file, view in zip(files, render_reference_views(mesh, views=3, seed=5), strict=True):
        correspondences = file.correspondences()
        torch.testing.assert_close(correspondences.pixels, view.pixels)
        torch.testing.assert_close(correspondences.visible, view.visible)
        torch.testing.assert_close(correspondences.xyz, view.xyz.float())
        torch.testing.assert_close(file.camera().camera_to_world, view.camera.camera_to_world)
        torch.testing.assert_close(file.camera().K, view.camera.K)
        torch.testing.assert_close(file.image(), view.gray.expand(3, -1, -1), atol=0.5 / 255 + 1e-6, rtol=0)
        depth = np.load(file.image_path.with_name(f"{file.image_path.stem}_depth.npy"), allow_pickle=False)
        np.testing.assert_array_equal(depth, view.depth.numpy())


def test_files_have_the_published_form(folder: Path) -> None:
    """Types and shapes are those of the published files, and the two matrices are each other's inverse."""
    table = np.load(folder / "7_3.0_120_20.npy", allow_pickle=True).item()
    forms = {key: (value.dtype.str, value.shape) for key, value in table.items()}
    assert forms == {"pxy": ("<i8", (2000, 2)), "is_visible": ("|b1", (2000,)), "xyz": ("<f8", (32, 32, 3))}
    camera = json.loads((folder / "7_3.0_120_20.json").read_text())
    np.testing.assert_allclose(np.array(camera["RT"]) @ camera["RT_"], np.eye(4), atol=1e-12)
    assert np.array(camera["RT_"])[:3, 3] == pytest.approx(
        [3 * math.cos(math.radians(20)) * math.cos(math.radians(120)), 3 * math.sin(math.radians(20)),
         3 * math.cos(math.radians(20)) * math.sin(math.radians(120))]
    )  # fmt: skip
    with Image.open(folder / "7_3.0_120_20.png") as image:
        assert (image.mode, image.size) == ("RGB", (256, 256))


def test_the_same_seed_gives_the_same_bytes(mesh: Mesh, folder: Path, tmp_path: Path) -> None:
    again = write_reference_views(mesh, tmp_path / "again", "7", views=3, seed=5, progress=False)
    other = write_reference_views(mesh, tmp_path / "other", "7", views=3, seed=6, progress=False)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
        assert (path.read_bytes() == (other / path.name).read_bytes()) == (
            path.suffix != ".npy" or "depth" in path.stem
        )


def test_an_existing_folder_is_not_replaced(mesh: Mesh, folder: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"):
        write_reference_views(mesh, folder, "7", views=1, progress=False)
    with pytest.raises(ValueError, match="plain file name"):
        write_reference_views(mesh, folder.parent / "new", "a/b", views=1, progress=False)


def test_archives_are_read_before_pickles(folder: Path, tmp_path: Path) -> None:
    stem = "7_3.0_0_20"
    table = np.load(folder / f"{stem}.npy", allow_pickle=True).item()
    (tmp_path / f"{stem}.png").write_bytes((folder / f"{stem}.png").read_bytes())
    np.savez(tmp_path / f"{stem}.npz", **table)
    (file,) = find_reference_views(tmp_path)
    np.testing.assert_array_equal(file.correspondences().pixels.numpy(), table["pxy"])


class Intruder:
    """Object that runs code of its own when an ordinary unpickler reads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_pickles_run_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "was_here"
    table = {"pxy": Intruder(mark), "is_visible": np.ones(1, bool), "xyz": np.zeros((32, 32, 3))}
    np.save(tmp_path / "bad.npy", np.array(table, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is not an array and is not loaded"):
        read_correspondences(tmp_path / "bad.npy")
    assert not mark.exists()
    np.load(tmp_path / "bad.npy", allow_pickle=True)
    assert mark.exists()  # the file would have


def test_wrong_files_are_named(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "7_3.0_0_20.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "plain.npy", np.zeros(3))
    np.save(tmp_path / "list.npy", np.array([[1, None]], dtype=object), allow_pickle=True)
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04junk")
    for name in ("cut.npy", "empty.npy", "plain.npy", "list.npy", "junk.npz"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as correspondences"):
            read_correspondences(tmp_path / name)
    np.save(tmp_path / "shape.npy", np.array({"pxy": np.zeros((3, 2)), "is_visible": np.ones(4)}, dtype=object))
    with pytest.raises(ValueError, match=r"should have arrays pxy \(n, 2\)"):
        read_correspondences(tmp_path / "shape.npy")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_correspondences(tmp_path / "none.npy")
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="cannot be read"):
        read_correspondences(tmp_path / "pickled.npy")


def test_folders_without_views_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There are no reference views"):
        find_reference_views(tmp_path / "none")
    (tmp_path / "7_3.0_0_20.png").write_bytes((folder / "7_3.0_0_20.png").read_bytes())
    with pytest.raises(FileNotFoundError, match="has no correspondences"):
        find_reference_views(tmp_path)
    (tmp_path / "photo.png").write_bytes((folder / "7_3.0_0_20.png").read_bytes())
    (tmp_path / "7_3.0_0_20.npy").touch()
    with pytest.raises(ValueError, match="is named <id>_<distance>"):
        find_reference_views(tmp_path)


def test_views_of_another_shape_or_size_are_named(folder: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(folder, tmp_path / "mixed"))
    for path in sorted(mixed.glob("7_3.0_120_20*")):
        path.rename(path.with_name(path.name.replace("7_", "8_", 1)))
    with pytest.raises(ValueError, match=r"in .*mixed should be of one shape, their names begin with 7, 8\."):
        find_reference_views(mixed)
    wide = Path(shutil.copytree(folder, tmp_path / "wide"))
    Image.new("RGB", (256, 200)).save(wide / "7_3.0_120_20.png")
    with pytest.raises(ValueError, match=r"are square, .*7_3\.0_120_20\.png is 256 x 200"):
        read_views(find_reference_views(wide))
    halves = Image.new("RGB", (64, 64), (100, 100, 100))
    halves.paste((255, 255, 255), (32, 0, 64, 64))
    halves.save(wide / "7_3.0_120_20.png")
    images, _ = read_views(find_reference_views(wide))
    torch.testing.assert_close(images[1, :, :, :120], torch.full((3, 256, 120), 100 / 255), rtol=0, atol=1e-3)


def test_selected_views_are_spread_over_all(folder: Path) -> None:
    files = find_reference_views(folder)
    assert [file.azimuth for file in spread_views([*files, *files], 3)] == [0, 240, 120]
    images, xyz = read_views(files)
    assert torch.equal(images[1], files[1].image())
    assert torch.equal(xyz[2], files[2].correspondences().xyz)
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"has 3 different views, {count} are asked for"):
            spread_views(files, count)


def test_published_views_are_twenty_without_the_duplicate(published: Path) -> None:
    files = find_reference_views(published)
    assert [file.azimuth for file in files] == [18 * i for i in range(20)]


def test_published_cameras_follow_the_formula(published: Path) -> None:
    for file in find_reference_views(published):
        elevation = math.radians(file.elevation)
        camera = reference_camera(math.radians(file.azimuth), elevation, file.distance, torch.zeros(3))
        torch.testing.assert_close(file.camera().camera_to_world, camera.camera_to_world, atol=3e-6, rtol=0)
        torch.testing.assert_close(file.camera().K, camera.K)


def test_published_positions_lie_in_their_cells(published: Path) -> None:
    for file in find_reference_views(published):
        xyz = file.correspondences().xyz
        filled = (xyz != -1).any(-1)
        uv, _ = file.camera().project(xyz[filled].double())
        assert 200 < filled.sum() < 300
        assert float((uv.flip(-1) / 8 - torch.nonzero(filled)).abs().max()) <= 0.5 + 1e-4


def test_published_visible_points_are_on_the_object(published: Path) -> None:
    for file in find_reference_views(published):
        correspondences = file.correspondences()
        depth = np.load(file.image_path.with_name(f"{file.image_path.stem}_depth.npy"), allow_pickle=False)
        row, column = correspondences.pixels[correspondences.visible].clamp(0, 255).numpy().T
        assert (depth[row, column] > 0).mean() > 0.9
        assert 0.15 < correspondences.visible.double().mean() < 0.3


def test_published_brightness_follows_our_shading_of_the_normals(published: Path) -> None:
    """Normals from differences of the published depth, where it is smooth."""
    errors = []
    for file in find_reference_views(published)[::4]:
        depth = np.load(file.image_path.with_name(f"{file.image_path.stem}_depth.npy")).astype(float)
        row, column = np.mgrid[:256, :256]
        point = np.stack([(column - 127.5) / 355 * depth, (row - 127.5) / 355 * depth, depth], -1)
        across, down = point[1:-1, 2:] - point[1:-1, :-2], point[2:, 1:-1] - point[:-2, 1:-1]
        normal = np.cross(across, down)
        length = np.linalg.norm(normal, axis=-1)
        near = [depth[1:-1, 1:-1], depth[1:-1, 2:], depth[1:-1, :-2], depth[2:, 1:-1], depth[:-2, 1:-1]]
        smooth = (np.min(near, 0) > 0) & (np.ptp(near, axis=0) < 0.03)
        cosine = np.abs(normal[..., 2])[smooth] / length[smooth]
        gray = file.image()[0].numpy()[1:-1, 1:-1][smooth] * 255
        errors.append(gray - (67.5 + 102.5 * cosine))
    error = np.concatenate(errors)
    assert np.median(np.abs(error)) < 1.5
    assert abs(np.median(error)) < 1
