# SPDX-License-Identifier: Apache-2.0
"""Training and test views of a toy, with and without defects."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomalib_pose.data.files import opengl_matrix, write_image, write_json
from anomalib_pose.geometry import Camera, look_at, mad_lattice
from anomalib_pose.render.mesh_lighting import BakedLight, Light, bake_light
from anomalib_pose.sample_data.defects import View, spoil
from anomalib_pose.sample_data.toys import Toy

CAMERA_ANGLE_X = 0.6911111611634243
LATTICE_VIEWS = 210

_ELEVATIONS = (math.radians(5), math.radians(75))
_DISTANCE_SPREAD = 0.02
_AIM_SPREAD = 0.02
_VIEW_TRIES = 20


@dataclass
class Studio:
    """A toy in one light, and the camera that looks at it.

    Args:
        toy: the toy.
        light: the light.
        width: width of the images in pixels.
        height: height of the images in pixels.
        radius: distance of the cameras from the toy's center.
        baked: the light on the toy, made here.
        relit: light on the toy without a part, by the part's number; views share it.
    """

    toy: Toy
    light: Light
    width: int
    height: int
    radius: float
    baked: BakedLight = field(init=False)
    relit: dict[int, BakedLight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.baked = bake_light(self.toy.mesh, self.light)

    def camera(self, camera_to_world: Tensor) -> Camera:
        """The camera at a pose (4, 4); the shorter side has MAD's field of view, so that the toy fits in."""
        shorter = min(self.width, self.height)
        square = Camera.from_fov(camera_to_world, CAMERA_ANGLE_X, shorter, shorter)
        intrinsics = square.K.clone()
        intrinsics[0, 2], intrinsics[1, 2] = self.width / 2, self.height / 2
        return Camera(camera_to_world, intrinsics, self.width, self.height)

    def photograph(self, camera_to_world: Tensor) -> np.ndarray:
        """Picture (H, W, 3) uint8 of the good toy."""
        return View.of(self.toy, self.camera(camera_to_world), self.light, self.baked).image

    def query(self, kind: str, rng: np.random.Generator, brightness_variation: float = 0.0) -> "Query":
        """A test view at a random pose.

        Args:
            kind: "good", or one of ``DEFECTS``.
            rng: source of the pose, the brightness and the defect.
            brightness_variation: the light is scaled by up to this share, upwards or downwards.

        Raises:
            ValueError: if no place for the defect was found in many views.
        """
        for _ in range(_VIEW_TRIES):
            camera = self.camera(_test_pose(self.radius, rng))
            brightness = 1 + brightness_variation * rng.uniform(-1, 1)
            light = replace(self.light, intensity=self.light.intensity * brightness)
            view = View.of(self.toy, camera, light, self.baked, self.relit)
            if kind == "good":
                return Query(kind, camera, brightness, view.image, None)
            spoiled = spoil(view, kind, rng)
            if spoiled is not None:
                return Query(kind, camera, brightness, *spoiled)
        msg = f"No place for a defect of the kind {kind} was found at {self.width} px; draw larger images."
        raise ValueError(msg)


@dataclass(frozen=True)
class Query:
    """A test image and what is known about it.

    Args:
        kind: "good" or the kind of defect.
        camera: the camera.
        brightness: factor on its light.
        image: picture (H, W, 3) uint8.
        mask: pixels (H, W) bool that the defect changes; None without a defect.
    """

    kind: str
    camera: Camera
    brightness: float
    image: np.ndarray
    mask: np.ndarray | None

    def write(self, folder: Path, file: str, mask_file: str) -> dict[str, Any]:
        """Write the image, and the mask of a defect; returns what is known about the image.

        Args:
            folder: folder of the category.
            file: path of the image in it.
            mask_file: path of the mask in it.
        """
        write_image(folder / file, self.image)
        if self.mask is not None:
            write_image(folder / mask_file, self.mask.astype(np.uint8) * 255)
        return {
            "file": file,
            "transform_matrix": opengl_matrix(self.camera.camera_to_world),
            "kind": self.kind,
            "brightness": self.brightness,
            "area_px": 0 if self.mask is None else int(self.mask.sum()),
        }


def draw_training(studio: Studio, poses: Tensor, folder: Path, name: str, step: Callable[[], None]) -> list[str]:
    """Write the training views.

    Args:
        studio: the good toy in its light.
        poses: (n, 4, 4).
        folder: folder of the category.
        name: path of a view in it, with ``{}`` for its number.
        step: called after each view.

    Returns:
        The paths in the folder.
    """
    files = [name.format(number) for number in range(len(poses))]
    for file, pose in zip(files, poses, strict=True):
        write_image(folder / file, studio.photograph(pose))
        step()
    return files


def write_transforms(folder: Path, files: list[str], poses: Tensor) -> None:
    """Write ``transforms.json`` of the training views.

    Args:
        folder: folder of the category.
        files: paths of the views in it.
        poses: their poses (n, 4, 4).
    """
    frames = [
        {"file_path": f"./{file}", "transform_matrix": opengl_matrix(pose)}
        for file, pose in zip(files, poses, strict=True)
    ]
    write_json(folder / "transforms.json", {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames})


def lattice(views: int, radius: float) -> Tensor:
    """Poses (views, 4, 4) of training views, float64: MAD's lattice, or fewer that are spread over it."""
    chosen = torch.linspace(0, LATTICE_VIEWS - 1, views).round().long()
    return mad_lattice(radius).double()[chosen]


def check_numbers(size: int, views: int, test_good: int, test_per_defect: int, radius: float) -> None:
    """Check what all layouts are drawn by.

    Raises:
        ValueError: if a number is out of its range.
    """
    if size < 16 or not 1 <= views <= LATTICE_VIEWS or test_good < 0 or test_per_defect < 0:
        msg = (
            f"size has to be 16 or more, views 1 to {LATTICE_VIEWS}, test counts 0 or more; got size {size}, "
            f"views {views}, test_good {test_good}, test_per_defect {test_per_defect}."
        )
        raise ValueError(msg)
    if radius < 2:
        msg = f"radius has to be 2 or more, got {radius}."
        raise ValueError(msg)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's operations here are too small to gain from threads, and on a busy machine they lose much by them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _test_pose(radius: float, rng: np.random.Generator) -> Tensor:
    """Random pose (4, 4) on the upper hemisphere, float64."""
    low, high = _ELEVATIONS
    elevation = math.asin(rng.uniform(math.sin(low), math.sin(high)))
    azimuth = rng.uniform(0, 2 * math.pi)
    distance = radius * rng.uniform(1 - _DISTANCE_SPREAD, 1 + _DISTANCE_SPREAD)
    direction = (
        math.cos(elevation) * math.cos(azimuth),
        math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
    )
    eye = distance * torch.tensor(direction, dtype=torch.float64)
    target = torch.from_numpy(rng.uniform(-_AIM_SPREAD, _AIM_SPREAD, 3))
    return look_at(eye, target, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
