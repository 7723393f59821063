# SPDX-License-Identifier: Apache-2.0
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data import read_transforms
from anomalib_pose.geometry import Camera, so3_exp


def _pose(seed: int = 0) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = so3_exp(torch.rand(3, generator=generator, dtype=torch.float64) * 2)
    pose[:3, 3] = torch.rand(3, generator=generator, dtype=torch.float64) * 4
    return pose.tolist()


def _image(path, width=16, height=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 200, dtype=np.uint8)).save(path)


def _write(folder, content):
    path = folder / "transforms.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def _one(folder, frame=None, **shared):
    """A file with one frame, which exists."""
    _image(folder / "images" / "a.png")
    entry = {"file_path": "images/a.png", "transform_matrix": _pose(), **(frame or {})}
    return _write(folder, {**shared, "frames": [entry]})


def test_blender_file(tmp_path):
    for index in range(2):
        _image(tmp_path / "train" / f"r_{index}.png")
    frames = [{"file_path": f"./train/r_{i}", "rotation": 0.1, "transform_matrix": _pose(i)} for i in range(2)]
    path = _write(tmp_path, {"camera_angle_x": 0.6911111611634243, "frames": frames})
    posed_frames = read_transforms(path)
    assert [frame.image_path.name for frame in posed_frames] == ["r_0.png", "r_1.png"]
    focal = 8 / math.tan(0.6911111611634243 / 2)
    assert torch.allclose(
        posed_frames[0].K, torch.tensor([[focal, 0, 8], [0, focal, 6], [0, 0, 1]], dtype=torch.float64)
    )
    # OpenGL looks along -z with y upwards, OpenCV along +z with y downwards; the center is the same.
    stored, pose = torch.tensor(_pose(1), dtype=torch.float64), posed_frames[1].camera_to_world
    assert pose.dtype == torch.float64
    for column, sign in enumerate((1, -1, -1, 1)):
        assert torch.allclose(pose[:, column], sign * stored[:, column])
    assert torch.allclose(pose, Camera.from_opengl(stored, posed_frames[1].K, 16, 12).camera_to_world)


def test_nerfstudio_file_with_intrinsics_per_frame_and_masks(tmp_path):
    _image(tmp_path / "images" / "a.jpg")
    _image(tmp_path / "images" / "b.jpg", 20, 10)
    Image.fromarray(np.zeros((12, 16), dtype=np.uint8)).save(tmp_path / "m.png")
    frames = [
        {"file_path": "images/a.jpg", "mask_path": "m.png", "transform_matrix": _pose(0)}
        | {"fl_x": 30.0, "fl_y": 31.0, "cx": 7.5, "cy": 6.25, "w": 16, "h": 12},
        {"file_path": "images/b.jpg", "transform_matrix": _pose(1), "fl_x": 40, "w": 20, "h": 10},
    ]
    posed_frames = read_transforms(_write(tmp_path, {"camera_model": "PINHOLE", "frames": frames}))
    assert posed_frames[0].K.tolist() == [[30, 0, 7.5], [0, 31, 6.25], [0, 0, 1]]
    assert posed_frames[1].K.tolist() == [[40, 0, 10], [0, 40, 5], [0, 0, 1]]
    assert posed_frames[0].mask_path == tmp_path / "m.png"
    assert posed_frames[1].mask_path is None
    assert (posed_frames[1].width, posed_frames[1].height) == (20, 10)


def test_instant_ngp_file_with_distortion_and_a_smaller_stored_image(tmp_path):
    shared = {"camera_angle_x": 0.5, "fl_x": 64.0, "fl_y": 60.0, "cx": 33.0, "cy": 25.0, "w": 64.0, "h": 48.0}
    lens = {"k1": 0.1, "k2": -0.02, "p1": 0.001, "p2": 0.002}
    posed_frames = read_transforms(_one(tmp_path, **shared, **lens, aabb_scale=16, is_fisheye=False))
    assert posed_frames[0].K.tolist() == [[16, 0, 8.25], [0, 15, 6.25], [0, 0, 1]]
    assert posed_frames[0].distortion == (0.1, -0.02, 0.001, 0.002, 0)


def test_intrinsics_of_a_frame_come_before_those_of_the_file(tmp_path):
    posed_frames = read_transforms(_one(tmp_path, {"camera_angle_x": math.pi / 2}, fl_x=99.0))
    assert posed_frames[0].K[0, 0] == pytest.approx(8.0)


def test_vertical_field_of_view(tmp_path):
    posed_frames = read_transforms(_one(tmp_path, camera_angle_x=math.pi / 2, camera_angle_y=math.pi / 2))
    assert posed_frames[0].K.diagonal().tolist() == pytest.approx([8, 6, 1])


def test_a_rounded_rotation_is_made_exact(tmp_path):
    rounded = np.round(_pose(3), 4).tolist()
    pose = read_transforms(_one(tmp_path, {"transform_matrix": rounded}, fl_x=20.0))[0].camera_to_world
    assert torch.allclose(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(pose[:3, 3], torch.tensor(rounded, dtype=torch.float64)[:3, 3])


def test_zero_coefficients_are_no_distortion(tmp_path):
    assert read_transforms(_one(tmp_path, fl_x=20.0, camera_model="OPENCV", k1=0.0, p1=0))[0].distortion == ()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"transforms\.json.*expected the camera poses"):
        read_transforms(tmp_path / "transforms.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "JSON object, got a list"),
        ({"camera_angle_x": 0.6}, "no frames"),
        ({"camera_angle_x": 0.6, "frames": []}, "no frames"),
        ({"camera_angle_x": 0.6, "frames": [3]}, "no frames"),
        ({"camera_angle_x": 0.6, "frames": [{"transform_matrix": []}]}, "without 'file_path'"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"transforms\.json.*{message}"):
        read_transforms(_write(tmp_path, content))


def _spoiled(change):
    matrix = np.array(_pose())
    change(matrix)
    return {"transform_matrix": matrix.tolist()}


@pytest.mark.parametrize(
    ("frame", "shared", "message"),
    [
        ({}, {}, "no intrinsics: expected 'camera_angle_x'"),
        ({}, {"fl_x": "wide"}, "finite number as 'fl_x', got 'wide'"),
        ({}, {"fl_x": -3}, "'fl_x' above 0, got -3"),
        ({}, {"camera_angle_x": 4.0}, "'camera_angle_x' above 0 and below 3.142, got 4"),
        ({}, {"fl_x": 20, "cx": math.nan}, "finite number as 'cx', got nan"),
        ({}, {"fl_x": 20, "w": 16, "h": 16}, "w = 16, h = 16, but the image is 16 x 12"),
        ({}, {"fl_x": 20, "w": 0}, "w = 0"),
        ({}, {"fl_x": 20, "camera_model": "OPENCV_FISHEYE"}, "'OPENCV_FISHEYE', which is not supported"),
        ({}, {"fl_x": 20, "camera_model": "EQUIRECTANGULAR"}, "'EQUIRECTANGULAR', which is not supported"),
        ({}, {"fl_x": 20, "is_fisheye": True}, "'fisheye', which is not supported"),
        ({}, {"fl_x": 20, "camera_model": "THIN_PRISM_FISHEYE"}, "'THIN_PRISM_FISHEYE', which is not supported"),
        ({}, {"fl_x": 20, "distortion_params": [0.1, 0, 0, 0.2, 0, 0]}, "k4 = 0.2 in 'distortion_params'"),
        ({}, {"fl_x": 20, "distortion_params": [0.1, 0.2]}, "list k1, k2, k3, k4, p1, p2 as 'distortion_params'"),
        ({}, {"fl_x": 20, "distortion_params": [math.nan, 0, 0, 0, 0, 0]}, "finite number as 'k1', got nan"),
        ({}, {"fl_x": 10**400}, "finite number as 'fl_x', got inf"),
        ({"transform_matrix": [[10**400] * 4] * 4}, {"fl_x": 20}, "(no readable transform_matrix|NaN or infinite)"),
        ({}, {"fl_x": 20, "k4": "0.1"}, "finite number as 'k4', got '0.1'"),
        ({"transform_matrix": [[1, 2], [3, 4]]}, {"fl_x": 20}, r"4 x 4 numbers, got shape \(2, 2\)"),
        ({"transform_matrix": "none"}, {"fl_x": 20}, "no readable transform_matrix"),
        (_spoiled(lambda m: m.__setitem__((1, 3), math.nan)), {"fl_x": 20}, "NaN or infinite"),
        (_spoiled(lambda m: m.__setitem__((0, 0), math.inf)), {"fl_x": 20}, "NaN or infinite"),
        (_spoiled(lambda m: m.__imul__([[2], [2], [2], [1]])), {"fl_x": 20}, "not a rigid motion"),
        (_spoiled(lambda m: m.__imul__([-1, 1, 1, 1])), {"fl_x": 20}, "not a rigid motion.*determinant -1"),
        (_spoiled(lambda m: m.__setitem__((3, 0), 0.5)), {"fl_x": 20}, "not a rigid motion.*last row"),
    ],
)
def test_bad_frames_are_named(tmp_path, frame, shared, message):
    with pytest.raises(ValueError, match=rf"transforms\.json, frame 'images/a\.png', .*{message}"):
        read_transforms(_one(tmp_path, frame, **shared))


@pytest.mark.parametrize("pose", [{}, {"transform_matrix": None}])
def test_a_file_without_poses_is_refused(tmp_path, pose):
    _image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"transforms\.json has no pose of 1 of 1 images \(a\): pose the images"):
        read_transforms(_write(tmp_path, {"fl_x": 20, "frames": [{"file_path": "a", **pose}]}))


def test_files_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"transforms\.json names images that do not exist in .*\(images/b\)"):
        read_transforms(_one(tmp_path, {"file_path": "images/b"}, fl_x=20.0))
    with pytest.raises(FileNotFoundError, match=r"frame 'images/a\.png', names the mask masks/a\.png, which does not"):
        read_transforms(_one(tmp_path, {"mask_path": "masks/a.png"}, fl_x=20.0))


def test_a_mask_of_another_size_is_refused(tmp_path):
    Image.fromarray(np.zeros((3, 3), dtype=np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png is 3 x 3, but its image .*a\.png is 16 x 12"):
        read_transforms(_one(tmp_path, {"mask_path": "m.png"}, fl_x=20.0))


def test_an_empty_image_is_refused(tmp_path):
    (tmp_path / "b.png").touch()
    with pytest.raises(ValueError, match=r"b\.png is empty"):
        read_transforms(_one(tmp_path, {"file_path": "b.png"}, fl_x=20.0))


def test_images_of_different_sizes_need_intrinsics_of_their_own(tmp_path):
    _image(tmp_path / "a.png")
    _image(tmp_path / "b.png", 20, 15)
    frames = [{"file_path": name, "transform_matrix": _pose()} for name in ("a.png", "b.png")]
    with pytest.raises(ValueError, match=r"transforms\.json has one camera.*b\.png is 20 x 15.*a\.png is 16 x 12"):
        read_transforms(_write(tmp_path, {"camera_angle_x": 0.6, "frames": frames}))


def test_two_poses_of_one_image_are_refused(tmp_path):
    _image(tmp_path / "a.png")
    frames = [{"file_path": name, "transform_matrix": _pose(i)} for i, name in enumerate(("a.png", "a"))]
    with pytest.raises(ValueError, match=r"two frames with the image .*a\.png"):
        read_transforms(_write(tmp_path, {"fl_x": 20, "frames": frames}))
