# SPDX-License-Identifier: Apache-2.0
"""Lens distortion of COLMAP models and transforms.json is OpenCV's, and undistorted photographs are pinhole images."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data import PosedFolder, read_colmap, read_transforms
from anomalib_pose.data.images import undistort

WIDTH, HEIGHT = 40, 30
FOCAL = (36.0, 35.0, 21.0, 14.0)
EIGHT = (0.3, 0.08, 0.004, -0.006, 0.02, 0.2, 0.05, 0.01)
# camera, its parameters, and OpenCV's coefficients that it means
LENSES = {
    "simple pinhole": ("SIMPLE_PINHOLE", (36, 21, 14), ()),
    "pinhole": ("PINHOLE", FOCAL, ()),
    "simple radial": ("SIMPLE_RADIAL", (36, 21, 14, -0.2), (-0.2, 0, 0, 0, 0)),
    "simple radial, zero": ("SIMPLE_RADIAL", (36, 21, 14, 0), ()),
    "radial": ("RADIAL", (36, 21, 14, -0.2, 0.05), (-0.2, 0.05, 0, 0, 0)),
    "radial, second alone": ("RADIAL", (36, 21, 14, 0, 0.05), (0, 0.05, 0, 0, 0)),
    "OpenCV": ("OPENCV", (*FOCAL, *EIGHT[:4]), (*EIGHT[:4], 0)),
    "OpenCV, zero": ("OPENCV", (*FOCAL, 0, 0, 0, 0), ()),
    "OpenCV, minus zero": ("OPENCV", (*FOCAL, -0.0, 0, 0, -0.0), ()),
    "full OpenCV": ("FULL_OPENCV", (*FOCAL, *EIGHT), EIGHT),
    "full OpenCV, five": ("FULL_OPENCV", (*FOCAL, *EIGHT[:5], 0, 0, 0), EIGHT[:5]),
    "full OpenCV, zero": ("FULL_OPENCV", (*FOCAL, *[0] * 8), ()),
}
POINTS = np.random.default_rng(0).uniform((-0.5, -0.4, 1), (0.5, 0.4, 1), (50, 3))


def _image(path, scale=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((HEIGHT * scale, WIDTH * scale, 3), np.uint8)).save(path)


def _colmap(root, model, parameters, scale=1):
    _image(root / "images/a.png", scale)
    folder = root / "sparse/0"
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(f"1 {model} {WIDTH} {HEIGHT} {' '.join(map(str, parameters))}\n")
    (folder / "images.txt").write_text("1 1 0 0 0 0 0 3 1 a.png\n\n")
    (folder / "points3D.txt").write_text("")
    return folder


def _projection(frame, points):
    """Project points in the camera's frame with OpenCV, pixel (0.5, 0.5) first."""
    coefficients = np.array(frame.distortion) if frame.distortion else None
    return cv2.projectPoints(points, np.zeros(3), np.zeros(3), frame.K.numpy(), coefficients)[0][:, 0]


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("lens", LENSES)
def test_a_colmap_camera_projects_as_colmap_says(tmp_path, lens, scale):
    pycolmap = pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    model, parameters, coefficients = LENSES[lens]
    folder = _colmap(tmp_path, model, parameters, scale)
    (frame,) = read_colmap(folder, tmp_path / "images")
    assert frame.distortion == coefficients
    camera = pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=list(parameters))
    expected = scale * np.array([camera.img_from_cam(point) for point in POINTS]).reshape(-1, 2)
    np.testing.assert_allclose(_projection(frame, POINTS), expected, atol=1e-9)


@pytest.mark.parametrize("lens", LENSES)
def test_binary_models_have_the_distortion_of_text(tmp_path, lens):
    pycolmap = pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    model, parameters, coefficients = LENSES[lens]
    binary = tmp_path / "binary"
    binary.mkdir()
    pycolmap.Reconstruction(_colmap(tmp_path, model, parameters)).write_binary(binary)
    assert read_colmap(binary, tmp_path / "images")[0].distortion == coefficients
    content = (binary / "cameras.bin").read_bytes()
    for length in range(0, len(content), 9):
        (binary / "cameras.bin").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cameras\.bin is cut short"):
            read_colmap(binary, tmp_path / "images")


@pytest.mark.parametrize("count", [5, 8])
def test_undistorted_pixels_come_from_where_opencv_projects_their_rays(count):
    K = torch.tensor([[36.0, 0, 21], [0, 35, 14], [0, 0, 1]], dtype=torch.float64)
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    ramps = undistort(torch.from_numpy(np.stack([u, v])).float(), K, EIGHT[:count])
    rays = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], 1) @ np.linalg.inv(K.numpy()).T
    source = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), K.numpy(), np.array(EIGHT[:count]))[0][:, 0]
    inside = ((source > 1) & (source < (WIDTH - 1, HEIGHT - 1))).all(1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(ramps.reshape(2, -1).T[inside], source[inside], atol=0.02)
    assert np.abs(source - np.stack([u.ravel(), v.ravel()], 1)).max() > 1


@pytest.mark.parametrize(
    ("lens", "coefficients"),
    [
        ({"k1": -0.2}, (-0.2, 0, 0, 0, 0)),
        (
            {"camera_model": "OPENCV", "k1": 0.1, "k2": 0.2, "p1": 0.01, "p2": 0.02, "k3": 0.3},
            (0.1, 0.2, 0.01, 0.02, 0.3),
        ),
        ({"k1": 0.1, "k4": 0.4}, (0.1, 0, 0, 0, 0, 0.4, 0, 0)),
        ({"k6": 0.6}, (0, 0, 0, 0, 0, 0, 0, 0.6)),
        ({"camera_model": "FULL_OPENCV", "k1": 0.1, "k5": 0.5}, (0.1, 0, 0, 0, 0, 0, 0.5, 0)),
        ({"camera_model": "OPENCV", "k1": 0, "k4": 0.0, "k5": 0, "k6": 0}, ()),
        ({"camera_model": "PINHOLE"}, ()),
        ({"distortion_params": [0.1, 0.2, 0.3, 0, 0.01, 0.02]}, (0.1, 0.2, 0.01, 0.02, 0.3)),
        ({"distortion_params": [0.1, 0, 0, 0, 0, 0], "k1": 0.5}, (0.1, 0, 0, 0, 0)),
        ({"distortion_params": [0.0] * 6}, ()),
    ],
)
def test_transforms_have_five_or_eight_coefficients(tmp_path, lens, coefficients):
    _image(tmp_path / "a.png")
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 36, **lens, "frames": [frame]}))
    assert read_transforms(tmp_path / "transforms.json")[0].distortion == coefficients


def test_a_colmap_photograph_becomes_a_pinhole_image(tmp_path):
    """A spot drawn where COLMAP projects a point lies at the pinhole projection, at three times the camera's size."""
    pycolmap = pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    model, parameters, _ = LENSES["OpenCV"]
    folder, scale, point = _colmap(tmp_path, model, parameters, 3), 3, np.array([0.35, -0.25, 1.0])
    camera = pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=list(parameters))
    u, v = scale * np.array(camera.img_from_cam(point)).ravel()
    y, x = np.mgrid[: scale * HEIGHT, : scale * WIDTH] + 0.5
    spot = 255 * (1 - np.exp(-((x - u) ** 2 + (y - v) ** 2) / 18))
    Image.fromarray(np.repeat(spot[..., None], 3, -1).astype(np.uint8)).save(tmp_path / "images/a.png")
    Image.open(tmp_path / "images/a.png").save(tmp_path / "images/b.png")
    (folder / "images.txt").write_text("1 1 0 0 0 0 0 3 1 a.png\n\n2 1 0 0 0 0 0 3 1 b.png\n\n")
    datamodule = PosedFolder(tmp_path, num_workers=0, holdout_every=2)
    datamodule.setup()
    item = datamodule.train_data[0]
    dark = np.where(1 - item.image[0].numpy() > 0.2, 1 - item.image[0].numpy(), 0)
    centroid = np.array([(x * dark).sum(), (y * dark).sum()]) / dark.sum()
    pinhole = item.intrinsics.numpy() @ point
    assert np.abs(centroid - pinhole[:2]).max() < 0.3
    assert np.hypot(*(pinhole[:2] - (u, v))) > 2
