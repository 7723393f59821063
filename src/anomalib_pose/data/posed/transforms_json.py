# SPDX-License-Identifier: Apache-2.0
"""Reader of ``transforms.json`` as Blender's NeRF exporters, nerfstudio and instant-ngp write it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalib_pose.data.decoding import image_size
from anomalib_pose.data.files import read_json
from anomalib_pose.data.masks import check_mask_size
from anomalib_pose.data.posed.pose_files import FileFinder, PoseFileReport, unposed_images
from anomalib_pose.data.posed.transforms_lens import LensEntry
from anomalib_pose.data.posed.transforms_split import find_transforms, images_of_other_splits, training_entries
from anomalib_pose.geometry import Camera, resize_intrinsics

_SAME_POSE = 1e-6
_RIGID_TOLERANCE = 1e-3
_ASPECT_TOLERANCE = 0.02
"""Largest difference (of the logarithms) between the aspects of two images that count as images of one camera."""


@dataclass(frozen=True)
class PosedFrame:
    """One image file and its camera.

    Args:
        image_path: the image.
        mask_path: mask of the object, or None.
        camera_to_world: pose (4, 4), OpenCV axes, float64; None if it is unknown.
        K: intrinsics (3, 3) in pixels of the stored image, float64.
        width: width of the stored image in pixels.
        height: height of the stored image in pixels.
        distortion: OpenCV's k1, k2, p1, p2, k3, or these and k4, k5, k6; empty for a pinhole camera.
    """

    image_path: Path
    mask_path: Path | None
    camera_to_world: Tensor | None
    K: Tensor
    width: int
    height: int
    distortion: tuple[float, ...] = ()


def read_transforms(path: Path) -> list[PosedFrame]:
    """Read the posed training images of a ``transforms.json``.

    The reader takes ``camera_angle_x`` (and ``camera_angle_y``), or ``fl_x, fl_y, cx, cy, w, h``, for all frames or
    per frame; ``file_path`` as ``FileFinder`` describes; ``mask_path``; and OpenCV's distortion coefficients k1 to k6,
    p1 and p2. It ignores all other keys, for example ``aabb_scale``. Where ``w`` and ``h`` differ from the size of the
    stored image, the intrinsics are scaled to this size.

    With nerfstudio's lists (``train_filenames``) the frames for training are read. Where there is no
    ``transforms.json``, the file ``transforms_train.json`` beside it is read. Frames without an image or a pose,
    frames that repeat another frame, and images without a frame are not used; one warning counts and names them.

    Args:
        path: the file; paths in it are relative to its folder.

    Returns:
        Frames in the order of the file.

    Raises:
        FileNotFoundError: if the file, a mask, or two thirds or more of the images that it names do not exist.
        ValueError: if the file is not JSON, has no frames or no intrinsics, two thirds or more of the poses are
            missing, a pose is not rigid or not finite, an image has two poses, the camera model is not supported, or
            images differ in size and have no intrinsics of their own. The message names the file.
    """
    return [frame for frame, _ in read_transforms_entries(path)]


def read_transforms_entries(path: Path) -> list[tuple[PosedFrame, dict[str, Any]]]:
    """Read the posed training images of a ``transforms.json`` with their entries in the file; see ``read_transforms``.

    Raises:
        FileNotFoundError: see ``read_transforms``.
        ValueError: see ``read_transforms``.
    """
    if path.name == "transforms.json":
        path = find_transforms(path.parent) or path
    if not path.is_file():
        msg = f"There is no {path.name} in {path.parent}: expected the camera poses there."
        raise FileNotFoundError(msg)
    content, finder = read_json(path), FileFinder(path.parent)
    all_entries = _entries(path, content)
    entries, unknown = training_entries(path, content, all_entries, finder)
    report = PoseFileReport(path, path.parent, len(entries))
    if unknown:
        report.notes.append(f"{len(unknown)} names of its split lists have no frame ({', '.join(unknown[:3])})")
    shared = {key: value for key, value in content.items() if key != "frames"}
    usable = []
    for entry in entries:
        image_path = finder.find(entry["file_path"])
        if image_path is None:
            report.missing.append(entry["file_path"])
        elif entry.get("transform_matrix") is None:
            report.without_pose.append(entry["file_path"])
        else:
            usable.append((_FrameEntry(path, entry, shared, finder).frame(image_path), entry))
    report.check()
    unique = {id(frame) for frame in unique_frames(str(path), [frame for frame, _ in usable], report)}
    frames = [(frame, entry) for frame, entry in usable if id(frame) in unique]
    _check_sizes(path, frames)
    posed = [image for entry in all_entries if (image := finder.find(entry["file_path"]))]
    others = [frame.mask_path for frame, _ in frames if frame.mask_path] + images_of_other_splits(path, finder)
    report.unposed = [image.name for image in unposed_images(posed, others)]
    report.log()
    return frames


def _entries(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the frames of a file, each with a name."""
    entries = content.get("frames")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        msg = f"{path} has no frames: expected a list 'frames' of objects with 'file_path' and 'transform_matrix'."
        raise ValueError(msg)
    for entry in entries:
        if not isinstance(entry.get("file_path"), str) or not entry["file_path"].strip():
            msg = f"{path} has a frame without 'file_path'."
            raise ValueError(msg)
    return entries


def read_pose(matrix: Any, where: str) -> Tensor:
    """Convert a stored OpenGL matrix to a camera-to-world pose (4, 4) with OpenCV axes, float64.

    The rotation is the one nearest to the stored matrix, which undoes the rounding in the file.

    Args:
        matrix: nested lists, 4 x 4 or the upper 3 x 4.
        where: file and frame, for the error message.

    Raises:
        ValueError: if the matrix has a wrong shape or numbers that are not finite, or is not a rigid motion.
    """
    try:
        pose = torch.tensor(matrix, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        msg = f"{where} has no readable transform_matrix: expected 4 x 4 numbers ({error})."
        raise ValueError(msg) from error
    if pose.shape not in {(4, 4), (3, 4)}:
        msg = f"{where} should have a transform_matrix of 4 x 4 numbers, got shape {tuple(pose.shape)}."
        raise ValueError(msg)
    rigid = rigid_pose(pose, f"{where} has a transform_matrix")
    return Camera.from_opengl(rigid, torch.eye(3, dtype=torch.float64), 1, 1).camera_to_world


def rigid_pose(pose: Tensor, where: str) -> Tensor:
    """Return the rigid motion (4, 4) nearest to a stored pose, which undoes the rounding of its numbers.

    Args:
        pose: (4, 4) or the upper (3, 4), float64.
        where: subject and verb of the error message, for example "<file> has a pose".

    Raises:
        ValueError: if a number is not finite, or the pose is not a rigid motion.
    """
    if not bool(pose.isfinite().all()):
        msg = f"{where} with NaN or infinite numbers: remove the frame or pose it again."
        raise ValueError(msg)
    rotation = pose[:3, :3]
    deviation = float((rotation @ rotation.T - torch.eye(3)).abs().max())
    determinant = float(torch.linalg.det(rotation))
    last_row = pose.new_tensor([0, 0, 0, 1])
    if deviation > _RIGID_TOLERANCE or determinant < 0 or (len(pose) == 4 and not torch.allclose(pose[3], last_row)):
        msg = (
            f"{where} that is not a rigid motion: rotation off by {deviation:.2g}, determinant {determinant:.3g}, last "
            f"row {pose[3:].flatten().tolist()}. Expected a rotation without scale or mirror above 0, 0, 0, 1."
        )
        raise ValueError(msg)
    left, _, right = torch.linalg.svd(rotation)
    rigid = torch.eye(4, dtype=torch.float64)
    rigid[:3, :3] = left @ right
    rigid[:3, 3] = pose[:3, 3]
    return rigid


def same_aspect(width: int, height: int, other_width: int, other_height: int) -> bool:
    """Return whether two images have the same aspect, within a tolerance; if so, one may be stretched to the other."""
    return abs(math.log(width * other_height / (height * other_width))) <= _ASPECT_TOLERANCE


class _FrameEntry(LensEntry):
    """One frame of the file, with the values that the file gives for all frames."""

    def __init__(self, path: Path, own: Mapping[str, Any], shared: Mapping[str, Any], finder: FileFinder) -> None:
        super().__init__(f"{path}, frame {own['file_path']!r},", own, shared)
        self.finder = finder

    def frame(self, image_path: Path) -> PosedFrame:
        """Check the frame and convert it."""
        mask_path = self._mask(self.own["mask_path"]) if self.own.get("mask_path") else None
        if mask_path is not None:
            check_mask_size(mask_path, image_path)
        pose = read_pose(self.own["transform_matrix"], self.where)
        width, height = image_size(image_path)
        return PosedFrame(
            image_path, mask_path, pose, self._intrinsics(width, height), width, height, self.distortion()
        )

    def _mask(self, name: Any) -> Path:
        path = self.finder.find(name) if isinstance(name, str) else None
        if path is None:
            msg = f"{self.where} names the mask {name}, which does not exist in {self.finder.folder}."
            raise FileNotFoundError(msg)
        return path

    def _intrinsics(self, width: int, height: int) -> Tensor:
        """Return K (3, 3) of the stored image, which may be smaller than the size that the file states."""
        stated_width, stated_height = self.number(self.values, "w", width), self.number(self.values, "h", height)
        if (
            stated_width <= 0
            or stated_height <= 0
            or not same_aspect(round(stated_width), round(stated_height), width, height)
        ):
            msg = (
                f"{self.where} says w = {stated_width:g}, h = {stated_height:g}, but the image is {width} x {height}: "
                "expected the same aspect."
            )
            raise ValueError(msg)
        focal_x, focal_y = self.focal(stated_width, stated_height)
        cx = self.number(self.values, "cx", stated_width / 2)
        cy = self.number(self.values, "cy", stated_height / 2)
        matrix = torch.tensor([[focal_x, 0, cx], [0, focal_y, cy], [0, 0, 1]], dtype=torch.float64)
        return resize_intrinsics(matrix, round(stated_width), round(stated_height), width, height)


def unique_frames(where: str, frames: list[PosedFrame], report: PoseFileReport) -> list[PosedFrame]:
    """Return the first frame of each image, and report the others.

    Args:
        where: subject of the error message.
        frames: frames with poses.
        report: report to which the names of repetitions are added.

    Raises:
        ValueError: if two frames of one image have different poses.
    """
    first: dict[Path, PosedFrame] = {}
    for frame in frames:
        previous = first.setdefault(frame.image_path.absolute(), frame)
        if previous is frame:
            continue
        poses = torch.stack([pose for pose in (previous.camera_to_world, frame.camera_to_world) if pose is not None])
        if not torch.allclose(poses[0], poses[-1], rtol=_SAME_POSE, atol=_SAME_POSE):
            msg = f"{where} has two frames with the image {frame.image_path} and different poses: remove one."
            raise ValueError(msg)
        report.repeated.append(frame.image_path.name)
    return list(first.values())


def _check_sizes(path: Path, frames: list[tuple[PosedFrame, dict[str, Any]]]) -> None:
    """Check that frames without intrinsics of their own have images of one size."""
    first, _ = frames[0]
    for frame, entry in frames:
        if (frame.width, frame.height) != (first.width, first.height) and not {"fl_x", "camera_angle_x"} & set(entry):
            msg = (
                f"{path} has one camera for all frames, but {frame.image_path} is {frame.width} x {frame.height} and "
                f"{first.image_path} is {first.width} x {first.height}. Give each frame its intrinsics, or make all "
                "images one size."
            )
            raise ValueError(msg)
