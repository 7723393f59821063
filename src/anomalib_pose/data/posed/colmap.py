# SPDX-License-Identifier: Apache-2.0
"""Reader of COLMAP's sparse models, binary or text; the only module that needs pycolmap."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalib_pose.data.decoding import image_size
from anomalib_pose.data.listing import data_folders
from anomalib_pose.data.posed.colmap_binary import check_complete
from anomalib_pose.data.posed.colmap_text import count_text_images, normalize_text_model
from anomalib_pose.data.posed.pose_files import FileFinder, PoseFileReport, unposed_images
from anomalib_pose.data.posed.transforms_json import (
    PosedFrame,
    rigid_pose,
    same_aspect,
    unique_frames,
)
from anomalib_pose.data.posed.transforms_lens import opencv_distortion
from anomalib_pose.geometry import rigid_inverse

logger = logging.getLogger(__name__)

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0")
"""Folders of models that COLMAP, its graphical interface and nerfstudio write, beside the folder of images."""
_MODEL_PARENTS = ("sparse", "colmap/sparse")

_FILES = ("cameras", "images", "points3D")
_SUFFIXES = (".bin", ".txt")
# Positions of OpenCV's k1, k2, p1, p2, k3, k4, k5, k6 among the parameters of COLMAP's models.
_DISTORTION: dict[str, tuple[int, ...]] = {
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": (3,),
    "RADIAL": (3, 4),
    "OPENCV": (4, 5, 6, 7),
    "FULL_OPENCV": (4, 5, 6, 7, 8, 9, 10, 11),
}
_NORM_TOLERANCE = 1e-3


def find_colmap(root: Path) -> Path | None:
    """Return the model with most images in ``sparse``, ``sparse/*``, ``colmap/sparse``, ``colmap/sparse/*`` and ``.``.

    COLMAP writes several models where it cannot connect all images; one warning names them. Of models with equally
    many images the first in the order of ``MODEL_FOLDERS`` is returned; None if no folder holds a file of a model.
    """
    folders = [root / name for name in MODEL_FOLDERS]
    for parent in (root / name for name in _MODEL_PARENTS):
        folders += [parent, *(data_folders(parent) if parent.is_dir() else ())]
    folders.append(root)
    counts = {folder: _count_images(folder) for folder in folders if any(_existing_files(folder).values())}
    if not counts:
        return None
    best = max(counts, key=lambda folder: counts[folder])
    others = [f"{folder.relative_to(root)} with {counts[folder]}" for folder in counts if folder != best]
    if others:
        logger.warning(
            "%s has several COLMAP models: %s with %d images is used, not %s.",
            root,
            best.relative_to(root),
            counts[best],
            ", ".join(others),
        )
    return best


def _count_images(model: Path) -> int:
    """Count the images of a model; -1 if files of the model are missing."""
    existing = _existing_files(model)
    if len(existing[".bin"]) == len(_FILES):
        path = model / "images.bin"
        with path.open("rb") as file:
            return min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
    return count_text_images(model) if len(existing[".txt"]) == len(_FILES) else -1


def read_colmap(model: Path, image_dir: Path) -> list[PosedFrame]:
    """Read the posed images of a model.

    COLMAP has the conventions of this package: OpenCV axes, and (0.5, 0.5) is the center of the first pixel. Poses are
    in the model's world frame. Where a camera is larger or smaller than its stored image, the intrinsics are scaled.
    The distortion of the models SIMPLE_RADIAL, RADIAL, OPENCV and FULL_OPENCV becomes that of the frame.

    Images of the model that do not exist or have no pose, and images in the folder without a pose, are not used; one
    warning counts and names them.

    Args:
        model: folder with ``cameras``, ``images`` and ``points3D``, all ``.bin`` or all ``.txt``; ``.bin`` is
            preferred.
        image_dir: folder to which the image names in the model are relative.

    Returns:
        Frames in the order of their names.

    Raises:
        ImportError: if pycolmap is not installed.
        FileNotFoundError: if the model does not exist, or two thirds or more of the images that it names.
        ValueError: if the model cannot be read, has no images, names an image twice, has poses of a third or less of
            the images, a camera has another model, or the aspects of an image and its camera differ. The message names
            the file.
    """
    reconstruction, names = _read_model(model)
    images = sorted(reconstruction.images.values(), key=lambda image: _name(image, names, model))
    if not images:
        msg = f"The COLMAP model {model} has no images: COLMAP registered none, or the model is unfinished."
        raise ValueError(msg)
    finder = FileFinder(image_dir)
    report = PoseFileReport(model, finder.folder, len(images))
    frames = []
    for image in images:
        name = _name(image, names, model)
        path = finder.find(name)
        if path is None:
            report.missing.append(name)
        elif not image.has_pose:
            report.without_pose.append(name)
        else:
            frames.append(_frame(image, f"The COLMAP model {model}, image {name!r},", path))
    report.check()
    frames = unique_frames(f"The COLMAP model {model}", frames, report)
    posed = [frame.image_path for frame in frames]
    beside = len(unposed_images(posed))
    if beside >= 2 * len(frames):
        msg = (
            f"The COLMAP model {model} has poses of {len(frames)} of {len(frames) + beside} images in "
            f"{finder.folder}: match the images again, or move images that need no pose to another folder."
        )
        raise ValueError(msg)
    report.unposed = [path.name for path in unposed_images(posed, root=finder.folder)]
    report.log()
    return frames


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
    points = sorted(_read_model(model)[0].points3D.items())
    positions = torch.tensor([point.xyz.tolist() for _, point in points], dtype=torch.float64)
    colors = torch.tensor([point.color.tolist() for _, point in points], dtype=torch.float64)
    return positions.reshape(-1, 3), colors.reshape(-1, 3) / 255


def _existing_files(model: Path) -> dict[str, list[str]]:
    """List the existing files of a model, without suffix, by suffix."""
    return {suffix: [name for name in _FILES if (model / (name + suffix)).is_file()] for suffix in _SUFFIXES}


def _read_model(model: Path) -> tuple[Any, dict[int, str]]:
    """Read a model with pycolmap, after the checks that pycolmap's reader lacks.

    Returns:
        The model, and for text the names of its images by their numbers.
    """
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
        check_complete(model)
    reconstruction, image_names = pycolmap.Reconstruction(), {}
    try:
        if suffix == ".bin":
            reconstruction.read_binary(model)
        else:
            with tempfile.TemporaryDirectory() as folder:
                image_names = normalize_text_model(model, Path(folder))
                reconstruction.read_text(folder)
    except (ValueError, IndexError, RuntimeError) as error:
        files = ", ".join(name + suffix for name in _FILES)
        msg = f"The COLMAP model {model} ({files}) cannot be read: {error}."
        raise ValueError(msg) from error
    return reconstruction, image_names


def _name(image: Any, names: dict[int, str], model: Path) -> str:
    try:
        return names[image.image_id] if names else str(image.name)
    except UnicodeDecodeError as error:
        msg = f"The COLMAP model {model} names an image in an encoding other than UTF-8 ({error}): rename the image."
        raise ValueError(msg) from error


def _frame(image: Any, where: str, path: Path) -> PosedFrame:
    """Check one image of the model and convert it to a frame."""
    camera = image.camera
    if camera.model.name not in _DISTORTION:
        msg = (
            f"{where} has the camera model {camera.model.name}: expected one of {', '.join(_DISTORTION)}. Undistort "
            "first: run colmap image_undistorter and give its output."
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
    parameters = [float(value) for value in camera.params]
    finite = bool(torch.tensor(parameters).isfinite().all())
    if not finite or not bool((intrinsics.diagonal() > 0).all()):
        msg = f"{where} should have finite intrinsics with focal lengths above 0, got {parameters}."
        raise ValueError(msg)
    coefficients = [parameters[index] for index in _DISTORTION[camera.model.name]]
    distortion = opencv_distortion([*coefficients, *[0.0] * (8 - len(coefficients))])
    return PosedFrame(path, None, _pose(image, where), intrinsics, width, height, distortion)


def _pose(image: Any, where: str) -> Tensor:
    """Return the camera-to-world pose (4, 4) of an image, float64."""
    world_to_camera = image.cam_from_world()
    norm = float(torch.from_numpy(world_to_camera.rotation.quat).norm())
    if not abs(norm - 1) < _NORM_TOLERANCE:  # pycolmap turns a quaternion of zeros into the identity
        msg = f"{where} has a pose with a quaternion of norm {norm:.3g}: expected 1."
        raise ValueError(msg)
    viewmat = torch.from_numpy(world_to_camera.matrix()).double()
    return rigid_inverse(rigid_pose(viewmat, f"{where} has a pose"))
