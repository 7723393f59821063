# SPDX-License-Identifier: Apache-2.0
"""Format of prepared queries: the size of a model's images, and the cameras of its training images."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from anomalib_pose.data.posed.transforms_json import PosedFrame, same_aspect
from anomalib_pose.geometry import resize_intrinsics
from anomalib_pose.geometry.checks import check_distortion, check_intrinsics, check_pose

logger = logging.getLogger(__name__)

_LENS_TOLERANCE = 0.003  # fraction of the image size by which the distortions of one lens may differ
_K_TOLERANCE = 0.5  # pixels
_MAX_DISPLACEMENT = 0.5  # median displacement by a lens distortion, as a fraction of the image size
_MAX_ROUNDING = 0.1  # largest relative change of an aspect ratio that counts as rounding of a size
_GRID = np.stack(np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 7)), -1).reshape(-1, 2)


@dataclass(frozen=True)
class QueryCamera:
    """Camera of the training images of one aspect ratio, which queries of this aspect ratio are assumed to have.

    Args:
        K: intrinsics (3, 3) in pixels of the stored images, float64.
        width: width of the stored images in pixels.
        height: height of the stored images in pixels.
        content: width and height of a prepared image without its padding.
        distortion: OpenCV's coefficients, 0, 5 or 8 of them.
        ambiguous: whether the training images have several lenses, so that the lens of a query is unknown.
    """

    K: Tensor
    width: int
    height: int
    content: tuple[int, int]
    distortion: tuple[float, ...] = ()
    ambiguous: bool = False

    def fits(self, width: int, height: int) -> bool:
        """Return whether an image has the aspect ratio of this camera, up to the rounding of its size."""
        # Rounding a small size changes its aspect ratio by up to one pixel; the camera is still the same.
        ratio = width * self.height / (height * self.width)
        tolerance = min(_MAX_ROUNDING, 1 / min(self.width, self.height, width, height))
        return same_aspect(width, height, self.width, self.height) or abs(ratio - 1) <= tolerance

    def of_size(self, width: int, height: int) -> "QueryCamera":
        """Return the camera of a photograph of another resolution."""
        intrinsics = resize_intrinsics(self.K, self.width, self.height, width, height)
        return replace(self, K=intrinsics, width=width, height=height)


@dataclass(frozen=True)
class QueryFormat:
    """Size of prepared images, and the cameras of the training images.

    Images of one aspect ratio are resized to the prepared size. In a set of portrait and landscape images, all are
    resized to one longer side and padded on both sides to a square.

    Args:
        size: width and height of prepared images in pixels.
        cameras: cameras of the training images, one for each aspect ratio, the most common first.
        white_background: whether the background of an image is painted white where its mask is given.
    """

    size: tuple[int, int]
    cameras: tuple[QueryCamera, ...]
    white_background: bool = False

    @classmethod
    def of_frames(
        cls,
        frames: Sequence[PosedFrame],
        image_size: int | tuple[int, int] | None = None,
        *,
        white_background: bool = False,
    ) -> "QueryFormat":
        """Return the format of a set of training images.

        Args:
            frames: training images, at least one.
            image_size: longer side of prepared images in pixels, or None for that of the most common size. anomalib's
                ``get_datamodule``, and with it its benchmark, turns a number into a pair of equal numbers; such a pair
                counts as one number.
            white_background: see the class.

        Raises:
            ValueError: if ``image_size`` is below 1 or has two lengths, a frame's camera is implausible, or a frame has
                neither the most common aspect ratio nor its reciprocal.
        """
        side = image_size[0] if isinstance(image_size, tuple) else image_size
        if image_size not in (side, (side, side)) or (side is not None and side < 1):
            msg = f"image_size is the longer side of the images in pixels, 1 or more, got {image_size}."
            raise ValueError(msg)
        check_frames(frames)
        groups = _by_aspect(frames)
        longest = side or max(groups[0][0])
        cameras = []
        for (width, height), members in groups:
            scale = longest / max(width, height)
            content = max(1, round(width * scale)), max(1, round(height * scale))
            cameras.append(_common_camera(members, width, height, content))
        size = max(camera.content[0] for camera in cameras), max(camera.content[1] for camera in cameras)
        if len(cameras) > 1:
            logger.info("The training images are portrait and landscape: all are padded to %d x %d pixels.", *size)
        return cls(size, tuple(cameras), white_background)

    @classmethod
    def of_size(
        cls, frames: Sequence[PosedFrame], size: tuple[int, int], *, white_background: bool = False
    ) -> "QueryFormat":
        """Return the format of images of one aspect ratio that are resized to a given size, without padding.

        Args:
            frames: images, at least one.
            size: width and height of prepared images in pixels.
            white_background: see the class.

        Raises:
            ValueError: if a frame's camera is implausible, or its aspect ratio differs from that of ``size``.
        """
        check_frames(frames)
        target = QueryCamera(torch.eye(3, dtype=torch.float64), *size, size)
        for frame in frames:
            if not target.fits(frame.width, frame.height):
                raise ValueError(_frame_message(frame, size))
        (width, height), members = _by_aspect(frames)[0]
        return cls(size, (_common_camera(members, width, height, size),), white_background)

    @classmethod
    def of_camera(cls, K: Tensor, size: tuple[int, int], *, white_background: bool = False) -> "QueryFormat":  # noqa: N803
        """Return the format of a model of which only the intrinsics and the size of its images are known."""
        return cls(size, (QueryCamera(K.detach().double().cpu(), *size, size),), white_background)

    def camera(self, width: int, height: int, name: str) -> QueryCamera:
        """Return the assumed camera of a photograph.

        Args:
            width: width of the photograph in pixels.
            height: height of the photograph in pixels.
            name: file of the photograph, for the error message.

        Raises:
            ValueError: if no training image has its aspect ratio, or the training images have several lenses.
        """
        camera = self.match(width, height)
        if camera is None:
            sizes = [(camera.width, camera.height) for camera in self.cameras]
            raise ValueError(_aspect_message(name, width, height, sizes))
        if camera.ambiguous:
            msg = (
                f"The camera of the image {name} is unknown, and undistortion needs it: the training images come from "
                "different cameras with distortion. Undistort all images first."
            )
            raise ValueError(msg)
        return camera.of_size(width, height)

    def match(self, width: int, height: int) -> QueryCamera | None:
        """Return the camera whose aspect ratio is nearest to that of an image, or None if none fits."""
        fitting = [camera for camera in self.cameras if camera.fits(width, height)]
        deviations = [abs(width * camera.height / (height * camera.width) - 1) for camera in fitting]
        return fitting[deviations.index(min(deviations))] if fitting else None

    def resized(self, width: int, height: int) -> "QueryFormat":
        """Return the format of prepared images of another size."""
        if (width, height) == self.size:
            return self
        x, y = width / self.size[0], height / self.size[1]
        cameras = [
            replace(camera, content=(max(1, round(camera.content[0] * x)), max(1, round(camera.content[1] * y))))
            for camera in self.cameras
        ]
        return replace(self, size=(width, height), cameras=tuple(cameras))


def check_frames(frames: Iterable[PosedFrame]) -> None:
    """Check that the cameras of frames are finite and plausible for the size of their images.

    Raises:
        ValueError: if a camera is not; the message names the image.
    """
    for frame in frames:
        where = f"The image {frame.image_path}"
        check_intrinsics(frame.K, frame.width, frame.height, where)
        check_distortion(frame.distortion, where)
        _check_displacement(frame, where)
        if frame.camera_to_world is not None:
            check_pose(frame.camera_to_world, where)


def _check_displacement(frame: PosedFrame, where: str) -> None:
    """Refuse a distortion that moves most of an image out of it, as coefficients in other units do."""
    if not any(frame.distortion):
        return
    grid = _GRID * [frame.width, frame.height]
    moved = np.abs(_distorted_grid(frame.K.double(), frame.width, frame.height, frame.distortion) - grid).max(1)
    if not np.median(moved) <= _MAX_DISPLACEMENT * max(frame.width, frame.height):
        msg = (
            f"{where}: the lens distortion {list(frame.distortion)} moves most of the image out of it: expected "
            "OpenCV's coefficients, which do not depend on the unit of pixels."
        )
        raise ValueError(msg)


def _aspect_message(name: str, width: int, height: int, sizes: Sequence[tuple[int, int]]) -> str:
    training = " or ".join(f"{training_width} x {training_height}" for training_width, training_height in sizes)
    return (
        f"The image {name} is {width} x {height}, but the training views are {training}: their intrinsics do not apply "
        "to another aspect ratio. Give the whole photograph, or the intrinsics of the photograph to estimate_pose or "
        "anomalib-pose localize."
    )


def _frame_message(frame: PosedFrame, size: tuple[int, int]) -> str:
    return (
        f"The image {frame.image_path} is {frame.width} x {frame.height}, but the other images have another aspect "
        f"({size[0]} x {size[1]}): crop or pad the image, and move its principal point, first."
    )


def _by_aspect(frames: Sequence[PosedFrame]) -> list[tuple[tuple[int, int], list[PosedFrame]]]:
    """Group frames in portrait and landscape; return the most common size and the frames of each group.

    Raises:
        ValueError: if a frame has neither the most common aspect ratio nor its reciprocal.
    """
    groups: list[tuple[QueryCamera, list[PosedFrame]]] = []
    sizes = Counter((frame.width, frame.height) for frame in frames)
    for (width, height), _ in sizes.most_common():
        members = [frame for frame in frames if (frame.width, frame.height) == (width, height)]
        group = next((group for group in groups if group[0].fits(width, height)), None)
        if group is None:
            if groups and not groups[0][0].fits(height, width):
                raise ValueError(_frame_message(members[0], groups[0][0].content))
            groups.append((QueryCamera(members[0].K, width, height, (width, height)), members))
        else:
            group[1].extend(members)
    return [((camera.width, camera.height), members) for camera, members in groups]


def _common_camera(frames: Sequence[PosedFrame], width: int, height: int, content: tuple[int, int]) -> QueryCamera:
    """Return the camera of frames, or the median of several cameras with one lens."""
    scaled = torch.stack(
        [resize_intrinsics(frame.K.double(), frame.width, frame.height, width, height) for frame in frames]
    )
    intrinsics = scaled.median(0).values
    if bool((scaled - scaled[0]).abs().max() > _K_TOLERANCE):
        logger.warning("Training images have different intrinsics; queries get their median.")
    coefficients = sorted({frame.distortion for frame in frames})
    if len(coefficients) == 1:
        return QueryCamera(intrinsics, width, height, content, coefficients[0])
    length = max(map(len, coefficients))
    table = np.array([[*frame.distortion, *[0.0] * (length - len(frame.distortion))] for frame in frames])
    median = tuple(float(value) for value in np.median(table, axis=0))
    positions = [_distorted_grid(intrinsics, width, height, tuple(row)) for row in np.unique(table, axis=0)]
    spread = max(np.abs(grid - _distorted_grid(intrinsics, width, height, median)).max() for grid in positions)
    if not spread <= _LENS_TOLERANCE * max(width, height):
        return QueryCamera(intrinsics, width, height, content, (), ambiguous=True)
    return QueryCamera(intrinsics, width, height, content, median if any(median) else ())


def _distorted_grid(K: Tensor, width: int, height: int, distortion: tuple[float, ...]) -> np.ndarray:  # noqa: N803
    """Return where a grid of pixels (n, 2) of the undistorted image lies in the photograph."""
    matrix = K.numpy()
    rays = (_GRID * [width, height] - matrix[:2, 2]) / np.diag(matrix)[:2]
    points = np.concatenate([rays, np.ones((len(rays), 1))], 1)
    return cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, np.array(distortion))[0][:, 0]
