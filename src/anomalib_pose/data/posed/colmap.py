# SPDX-License-Identifier: Apache-2.0
"""Reader of COLMAP's sparse models, binary or text; the only module that needs pycolmap."""

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalib_pose.data.images import image_size
from anomalib_pose.data.posed.transforms_json import PosedFrame, rigid_pose, same_aspect
from anomalib_pose.geometry import rigid_inverse

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0")
"""Folders of models that COLMAP, its graphical interface and nerfstudio write, beside the folder of images."""

_FILES = ("cameras", "images", "points3D")
_SUFFIXES = (".bin", ".txt")
_UNDISTORTED = ("PINHOLE", "SIMPLE_PINHOLE")
# Binary records: bytes before the name, whether there is a name, format of the entry count, bytes per entry.
_RECORDS = {"images": (64, True, "<Q", 24), "points3D": (43, False, "<Q", 8), "frames": (64, False, "<I", 16)}
_CAMERA_BYTES = 24
_NORM_TOLERANCE = 1e-3
_PINHOLE_PARAMETERS = {0: 3, 1: 4}


def find_colmap(root: Path) -> Path | None:
    """Return the first of ``sparse/0``, ``sparse`` and ``colmap/sparse/0`` that holds a file of a model, or None."""
    return next((root / name for name in MODEL_FOLDERS if any(_existing_files(root / name).values())), None)


def read_colmap(model: Path, image_dir: Path) -> list[PosedFrame]:
    """Read the posed images of a model.

    COLMAP has the conventions of this package: OpenCV axes, and (0.5, 0.5) is the center of the first pixel. Poses are
    in the model's world frame. Where a camera is larger or smaller than its stored image, the intrinsics are scaled.

    Args:
        model: folder with ``cameras``, ``images`` and ``points3D``, all ``.bin`` or all ``.txt``; ``.bin`` is
            preferred.
        image_dir: folder to which the image names in the model are relative.

    Returns:
        Frames in the order of their names.

    Raises:
        ImportError: if pycolmap is not installed.
        FileNotFoundError: if the model, or an image that it names, does not exist.
        ValueError: if the model cannot be read, has no images, names an image twice or has one without a pose, a
            camera has distortion, or the aspects of an image and its camera differ. The message names the file.
    """
    reconstruction = _read_model(model)
    images = sorted(reconstruction.images.values(), key=lambda image: image.name)
    if not images:
        msg = f"The COLMAP model {model} has no images: COLMAP registered none, or the model is unfinished."
        raise ValueError(msg)
    name, count = Counter(image.name for image in images).most_common(1)[0]
    if count > 1:
        msg = f"The COLMAP model {model} has {count} images named {name!r}: expected one."
        raise ValueError(msg)
    return [_frame(image, model, image_dir) for image in images]


def read_colmap_points(model: Path) -> tuple[Tensor, Tensor]:
    """Read the triangulated points of a model, for example to start the fit of a scene.

    Args:
        model: folder of the model, as for ``read_colmap``.

    Returns:
        Positions (n, 3) in the world frame and colors (n, 3), RGB in [0, 1], both float64; in the order of the
        points' numbers. n may be 0.

    Raises:
        ImportError: if pycolmap is not installed.
        FileNotFoundError: if the model does not exist.
        ValueError: if the model cannot be read.
    """
    points = sorted(_read_model(model).points3D.items())
    positions = torch.tensor([point.xyz.tolist() for _, point in points], dtype=torch.float64)
    colors = torch.tensor([point.color.tolist() for _, point in points], dtype=torch.float64)
    return positions.reshape(-1, 3), colors.reshape(-1, 3) / 255


def _existing_files(model: Path) -> dict[str, list[str]]:
    """List the existing files of a model, without suffix, by suffix."""
    return {suffix: [name for name in _FILES if (model / (name + suffix)).is_file()] for suffix in _SUFFIXES}


def _read_model(model: Path) -> Any:
    """Read a model with pycolmap, after the checks that pycolmap's reader lacks."""
    try:
        import pycolmap
    except ImportError as error:
        msg = f"Reading the COLMAP model {model} needs pycolmap: pip install 'anomalib-pose[colmap]'."
        raise ImportError(msg) from error
    existing = _existing_files(model)
    suffix, names = max(existing.items(), key=lambda item: len(item[1]))
    missing = [name + suffix for name in _FILES if name not in names]
    if missing:
        msg = (
            f"There is no complete COLMAP model in {model}: expected cameras, images and points3D, all .bin or all "
            f".txt; missing: {', '.join(missing)}."
        )
        raise FileNotFoundError(msg)
    if suffix == ".bin":
        _check_complete(model)
    reconstruction = pycolmap.Reconstruction()
    try:
        (reconstruction.read_binary if suffix == ".bin" else reconstruction.read_text)(model)
    except (ValueError, IndexError, RuntimeError) as error:
        msg = f"The COLMAP model {model} ({', '.join(name + suffix for name in _FILES)}) cannot be read: {error}."
        raise ValueError(msg) from error
    return reconstruction


def _frame(image: Any, model: Path, image_dir: Path) -> PosedFrame:
    """Check one image of the model and convert it to a frame."""
    where = f"The COLMAP model {model}, image {image.name!r},"
    path = image_dir / image.name
    if not path.is_file():
        msg = f"{where} names the file {path}, which does not exist. Names with spaces are not read from text models."
        raise FileNotFoundError(msg)
    camera = image.camera
    if camera.model.name not in _UNDISTORTED:
        msg = (
            f"{where} has the camera model {camera.model.name}, which has distortion: expected "
            f"{' or '.join(_UNDISTORTED)}. Run COLMAP's image undistorter (colmap image_undistorter) and give its "
            "output."
        )
        raise ValueError(msg)
    width, height = image_size(path)
    if min(camera.width, camera.height) < 1 or not same_aspect(camera.width, camera.height, width, height):
        msg = (
            f"{where} has a camera of {camera.width} x {camera.height}, but {path} is {width} x {height}: expected "
            "the same aspect."
        )
        raise ValueError(msg)
    scale = torch.tensor([width / camera.width, height / camera.height, 1], dtype=torch.float64)
    intrinsics = torch.from_numpy(camera.calibration_matrix()).double() * scale[:, None]
    if not bool(intrinsics.isfinite().all()) or not bool((intrinsics.diagonal() > 0).all()):
        msg = f"{where} should have finite intrinsics with focal lengths above 0, got {camera.params.tolist()}."
        raise ValueError(msg)
    return PosedFrame(path, None, _pose(image, where), intrinsics, width, height)


def _pose(image: Any, where: str) -> Tensor:
    """Return the camera-to-world pose (4, 4) of an image, float64."""
    if not image.has_pose:
        msg = f"{where} has no pose: remove it from the model."
        raise ValueError(msg)
    world_to_camera = image.cam_from_world()
    norm = float(torch.from_numpy(world_to_camera.rotation.quat).norm())
    if not abs(norm - 1) < _NORM_TOLERANCE:  # pycolmap turns a quaternion of zeros into the identity
        msg = f"{where} has a pose with a quaternion of norm {norm:.3g}: expected 1."
        raise ValueError(msg)
    viewmat = torch.from_numpy(world_to_camera.matrix()).double()
    return rigid_inverse(rigid_pose(viewmat, f"{where} has a pose"))


def _check_complete(model: Path) -> None:
    """Check that no binary file is truncated: COLMAP's reader would never end, or take missing numbers as zeros."""
    for path in sorted(model.glob("*.bin")):
        if path.stem != "cameras" and path.stem not in _RECORDS:
            continue
        content = path.read_bytes()
        try:
            end = _end_of_cameras(content) if path.stem == "cameras" else _end_of_records(content, path.stem)
            complete = end <= len(content)
        except (struct.error, ValueError):
            complete = False
        if not complete:
            msg = f"{path} is cut short ({len(content)} bytes): copy it again, or write the model again."
            raise ValueError(msg)


def _end_of_records(content: bytes, kind: str) -> int:
    """Return the offset in bytes of the end of the last record.

    Raises:
        struct.error: if the content ends within a number.
        ValueError: if the content ends within a name.
    """
    fixed, named, count_format, entry = _RECORDS[kind]
    (records,), offset = struct.unpack_from("<Q", content), 8
    for _ in range(records):
        offset += fixed
        if named:
            offset = content.index(0, offset) + 1
        (count,) = struct.unpack_from(count_format, content, offset)
        offset += struct.calcsize(count_format) + count * entry
    return offset


def _end_of_cameras(content: bytes) -> int:
    """Return the offset in bytes of the end of the last camera, or of the first camera with distortion.

    Distortion is refused later.

    Raises:
        struct.error: if the content ends within a number.
    """
    (records,), offset = struct.unpack_from("<Q", content), 8
    for _ in range(records):
        (model,) = struct.unpack_from("<I", content, offset + 4)
        if model not in _PINHOLE_PARAMETERS:
            return offset
        offset += _CAMERA_BYTES + 8 * _PINHOLE_PARAMETERS[model]
    return offset
