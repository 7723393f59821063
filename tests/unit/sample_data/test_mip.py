# SPDX-License-Identifier: Apache-2.0
"""Rendered toys in MIP's layouts: lights, correct poses, exact masks, models that pycolmap reads."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import cKDTree

from anomalib_pose.data import MIP, read_colmap_points
from anomalib_pose.geometry import Camera, mad_lattice
from anomalib_pose.render.mesh_lighting import BakedLight, Light, bake_light, render_mesh
from anomalib_pose.sample_data import Toy, build_toy, write_mip

CATEGORY, SIZE, VIEWS, LIGHTS, GOOD, BAD, SEED = "rocket", 48, 3, 3, 1, 3, 5
KINDS = ("Burrs", "Missing", "Stains")


def make(out: Path, **changes: object) -> Path:
    counts = {"views": VIEWS, "lights": LIGHTS, "test_good": GOOD, "test_per_defect": BAD}
    return write_mip(out, CATEGORY, SEED, SIZE, progress=False, **{**counts, **changes})


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("mip"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("real"), colmap=True)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def hidden(folder: Path) -> list[dict]:
    return json.loads((folder.parent / "_hidden" / f"{folder.name}.json").read_text())["images"]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_synthetic_layout_is_that_of_mip(synthetic: Path) -> None:
    expected = {"transforms.json"} | {f"train/{i}.png" for i in range(VIEWS)}
    expected |= {f"test/good_{light}/{i}.png" for light in (1, 2, 3) for i in range(GOOD)}
    for folder in ("test", "ground_truth"):
        expected |= {f"{folder}/{kind}/{i}.png" for kind in KINDS for i in range(BAD)}
    assert files(synthetic) == expected


def test_real_layout_is_that_of_mip_real(real: Path) -> None:
    expected = {f"sparse/0/{name}.txt" for name in ("cameras", "images", "points3D")}
    expected |= {f"images/{i}.jpg" for i in range(VIEWS)}
    expected |= {f"test/good/{i}.jpg" for i in range(LIGHTS * GOOD)}
    expected |= {f"test/{kind}/{i}.jpg" for kind in KINDS for i in range(BAD)}
    expected |= {f"ground_truth/{kind}/{i}.png" for kind in KINDS for i in range(BAD)}
    assert files(real) == expected
    for name in expected:
        if not name.endswith(".txt"):
            assert read(real / name).shape[:2] == (36, 48)


@cache
def _studio(number: int) -> tuple[Toy, Light, BakedLight]:
    """Make the toy in light 1, 2 or 3, which rotate the lamps and change their colors and intensity."""
    toy = build_toy(CATEGORY, SEED)
    degrees, tint, intensity = {1: (0, (1, 1, 1), 1.0), 2: (110, (1.25, 1, 0.68), 0.8), 3: (-125, (1, 1, 1), 1.3)}[
        number
    ]
    angle, changes = np.radians(degrees), {}
    for name in ("sky", "ground", "key", "fill"):
        changes[name] = tuple(np.multiply(getattr(Light(), name), tint).tolist())
    for name in ("key_direction", "fill_direction"):
        x, y, z = getattr(Light(), name)
        turned = (x + 1j * y) * np.exp(1j * angle)
        changes[name] = (float(turned.real), float(turned.imag), z)
    light = replace(Light(), intensity=intensity, **changes)
    return toy, light, bake_light(toy.mesh, light)


def _camera_of(image: dict) -> Camera:
    pose = torch.tensor(image["transform_matrix"], dtype=torch.float64)
    return Camera.from_opengl(pose, Camera.from_fov(pose, 0.6911111611634243, SIZE, SIZE).K, SIZE, SIZE)


def _good(image: dict, light: int) -> np.ndarray:
    toy, lamps, baked = _studio(light)
    return (render_mesh(toy.mesh, _camera_of(image), lamps, baked).rgb * 255 + 0.5).to(torch.uint8).numpy()


def test_training_views_are_on_the_lattice_in_light_1(synthetic: Path) -> None:
    frames = json.loads((synthetic / "transforms.json").read_text())["frames"]
    assert [frame["file_path"] for frame in frames] == [f"./train/{i}.png" for i in range(VIEWS)]
    for frame in frames:
        camera = _camera_of(frame)
        assert float((mad_lattice(3.5) - camera.camera_to_world.float()).abs().amax((1, 2)).min()) < 1e-6
        np.testing.assert_array_equal(read(synthetic / frame["file_path"]), _good(frame, 1))


@pytest.mark.parametrize("light", [1, 2, 3])
def test_queries_have_their_light_and_masks_are_exact(synthetic: Path, light: int) -> None:
    images = [image for image in hidden(synthetic) if image["light"] == light]
    assert Counter(image["kind"] for image in images) == {"good": GOOD, **dict.fromkeys(KINDS, 1)}
    for image in images:
        rendering, stored = _good(image, light), read(synthetic / image["file"])
        assert image["brightness"] == pytest.approx({1: 1, 2: 0.8, 3: 1.3}[light])
        differs = np.abs(rendering.astype(int) - stored).max(2)
        if image["kind"] == "good":
            assert differs.max() <= 1
        else:
            mask = read(synthetic / image["file"].replace("test/", "ground_truth/"))
            # Another order of sine evaluations may round a value differently.
            assert not (differs[mask == 0] > 1).any()
            assert image["area_px"] == (mask == 255).sum() > 4
            assert (differs[mask == 255] > 1).mean() > 0.9


def test_defects_take_the_lights_in_turn(synthetic: Path) -> None:
    for image in hidden(synthetic):
        folder, name = image["file"].split("/")[1:]
        number = int(name.split(".")[0])
        expected = int(folder.split("_")[1]) if image["kind"] == "good" else number % LIGHTS + 1
        assert image["light"] == expected


def test_the_datamodule_reads_the_synthetic_layout(synthetic: Path) -> None:
    datamodule = MIP(synthetic.parent, synthetic.name, num_workers=0)
    datamodule.setup()
    truth = {image["file"]: image for image in hidden(synthetic)}
    assert len(datamodule.train_data) == VIEWS
    for item in datamodule.test_data:
        image = truth["/".join(item.image_path.split("/")[-3:])]
        assert bool(item.gt_label) == (image["kind"] != "good")
        assert int(item.gt_mask.sum()) == image["area_px"]
        assert torch.allclose(item.camera_to_world.float(), _camera_of(image).camera_to_world.float(), atol=1e-6)


def test_the_datamodule_reads_the_real_layout(real: Path) -> None:
    pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    datamodule = MIP(real.parent, real.name, num_workers=0)
    datamodule.setup()
    lattice = mad_lattice(3.5)[torch.linspace(0, 209, VIEWS).round().long()]
    for index, item in enumerate(datamodule.train_data):
        assert torch.allclose(item.camera_to_world.float(), lattice[index], atol=1e-6)
    truth = {image["file"]: image for image in hidden(real)}
    vertices = _studio(1)[0].mesh.vertices.double()
    for item in [*datamodule.train_data, *datamodule.test_data]:
        assert item.image.shape == (3, 36, 48)
        uv, depth = Camera(item.camera_to_world.double(), item.intrinsics.double(), 48, 36).project(vertices)
        assert float(depth.min()) > 0
        # The bounding box of the pixels that are not white is the bounding box of the projected vertices.
        covered = torch.nonzero((item.image < 0.9).any(0)).flip(1)
        low, high = covered.amin(0), covered.amax(0) + 1
        if not item.gt_label:
            assert bool(((uv.amin(0) - low).abs() < 1.5).all())
            assert bool(((uv.amax(0) - high).abs() < 1.5).all())
        key = "/".join(item.image_path.split("/")[-3:])
        if key in truth:
            assert bool(item.gt_label) == (truth[key]["kind"] != "good")


def test_points_of_the_model_lie_on_the_toy(real: Path) -> None:
    pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    positions, colors = read_colmap_points(real / "sparse" / "0")
    mesh = _studio(1)[0].mesh
    # A place may have vertices of several colors, so the nearest vertex in position and color counts.
    distance, _ = cKDTree(torch.cat([mesh.vertices, mesh.colors], 1)).query(torch.cat([positions, colors], 1))
    assert len(positions) == 500
    assert distance.max() < 1 / 255
    assert cKDTree(mesh.vertices).query(positions)[0].max() < 1e-6


@pytest.mark.parametrize("layout", ["synthetic", "real"])
def test_equal_arguments_give_equal_bytes(layout: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    again = make(tmp_path, colmap=layout == "real")
    assert files(folder) == files(again)
    for name in files(folder):
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name
    assert hidden(folder) == hidden(again)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lights": 0}, "lights has to be 1 to 6, got 0"),
        ({"lights": 7}, "lights has to be 1 to 6, got 7"),
        ({"views": 0}, "views 0"),
        ({"radius": 1.0}, "got 1.0"),
    ],
)
def test_invalid_arguments_are_named(tmp_path: Path, changes: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_all_six_lights_differ(tmp_path: Path) -> None:
    folder = make(tmp_path, lights=6, views=1, test_good=1, test_per_defect=0)
    factors = [image["brightness"] for image in hidden(folder)]
    assert factors[0] == 1
    assert len(set(factors)) == 6
    assert min(factors) < 0.6 < 1.2 < max(factors)
