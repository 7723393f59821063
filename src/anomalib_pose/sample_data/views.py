# SPDX-License-Identifier: Apache-2.0
"""Training views and test queries of a toy, with and without defects."""

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
from anomalib_pose.sample_data.defects import ToyRendering, render_defect
from anomalib_pose.sample_data.toys import Toy

CAMERA_ANGLE_X = 0.6911111611634243
LATTICE_VIEWS = 210

_ELEVATIONS = (math.radians(5), math.radians(75))
_DISTANCE_SPREAD = 0.02
_TARGET_SPREAD = 0.02
_VIEW_TRIES = 20


@dataclass
class Studio:
    """A toy in one light, with the intrinsics and the distance of its cameras.

    Args:
        toy: toy without defects.
        light: light of the scene.
        width: width of the images in pixels.
        height: height of the images in pixels.
        radius: distance of the cameras from the toy's center.
        baked: baked light on the toy, computed on construction.
        baked_without: baked light on the toy without one part, by the part's number; shared by all renderings.
    """

    toy: Toy
    light: Light
    width: int
    height: int
    radius: float
    baked: BakedLight = field(init=False)
    baked_without: dict[int, BakedLight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.baked = bake_light(self.toy.mesh, self.light)

    def camera(self, camera_to_world: Tensor) -> Camera:
        """Build the camera at a pose (4, 4); the image's shorter side has MAD's field of view, so that the toy fits."""
        shorter = min(self.width, self.height)
        square = Camera.from_fov(camera_to_world, CAMERA_ANGLE_X, shorter, shorter)
        intrinsics = square.K.clone()
        intrinsics[0, 2], intrinsics[1, 2] = self.width / 2, self.height / 2
        return Camera(camera_to_world, intrinsics, self.width, self.height)

    def render(self, camera_to_world: Tensor) -> np.ndarray:
        """Render the good toy from a pose (4, 4) to an image (H, W, 3) uint8."""
        return ToyRendering.render(self.toy, self.camera(camera_to_world), self.light, self.baked).image

    def render_query(self, kind: str, rng: np.random.Generator, brightness_variation: float = 0.0) -> "RenderedQuery":
        """Render a query at a random pose.

        Args:
            kind: "good", or one of ``DEFECTS``.
            rng: random generator of the pose, the brightness and the defect.
            brightness_variation: largest relative change of the light's intensity, upwards or downwards.

        Raises:
            ValueError: if no place for the defect was found in 20 views.
        """
        for _ in range(_VIEW_TRIES):
            camera = self.camera(_test_pose(self.radius, rng))
            brightness = 1 + brightness_variation * rng.uniform(-1, 1)
            light = replace(self.light, intensity=self.light.intensity * brightness)
            rendering = ToyRendering.render(self.toy, camera, light, self.baked, self.baked_without)
            if kind == "good":
                return RenderedQuery(kind, camera, brightness, rendering.image, None)
            defective = render_defect(rendering, kind, rng)
            if defective is not None:
                return RenderedQuery(kind, camera, brightness, *defective)
        msg = f"No place for a defect of kind {kind} was found in images of {self.width} px: use a larger size."
        raise ValueError(msg)


@dataclass(frozen=True)
class RenderedQuery:
    """A rendered query image with its ground truth.

    Args:
        kind: "good" or the kind of defect.
        camera: camera of the image.
        brightness: factor on the intensity of the light.
        image: image (H, W, 3) uint8.
        mask: mask (H, W) bool of the pixels that the defect changes; None without a defect.
    """

    kind: str
    camera: Camera
    brightness: float
    image: np.ndarray
    mask: np.ndarray | None

    def write(self, folder: Path, file: str, mask_file: str) -> dict[str, Any]:
        """Write the image, and the mask if there is a defect; return the ground truth for ``_hidden/<category>.json``.

        Args:
            folder: folder of the category.
            file: path of the image in the folder.
            mask_file: path of the mask in the folder.
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


def write_training_views(studio: Studio, poses: Tensor, folder: Path, name: str, step: Callable[[], None]) -> list[str]:
    """Render and write the training views.

    Args:
        studio: good toy in the light of the training views.
        poses: camera-to-world matrices (n, 4, 4).
        folder: folder of the category.
        name: path of a view in the folder, with ``{}`` for its number.
        step: function to call after each view.

    Returns:
        Paths of the views in the folder.
    """
    files = [name.format(number) for number in range(len(poses))]
    for file, pose in zip(files, poses, strict=True):
        write_image(folder / file, studio.render(pose))
        step()
    return files


def write_transforms(folder: Path, files: list[str], poses: Tensor) -> None:
    """Write ``transforms.json`` of the training views.

    Args:
        folder: folder of the category.
        files: paths of the views in the folder.
        poses: camera-to-world matrices (n, 4, 4) of the views.
    """
    frames = [
        {"file_path": f"./{file}", "transform_matrix": opengl_matrix(pose)}
        for file, pose in zip(files, poses, strict=True)
    ]
    write_json(folder / "transforms.json", {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames})


def training_poses(views: int, radius: float) -> Tensor:
    """Select poses (views, 4, 4), float64, at even intervals from MAD's lattice of 210 views."""
    indices = torch.linspace(0, LATTICE_VIEWS - 1, views).round().long()
    return mad_lattice(radius).double()[indices]


def check_arguments(size: int, views: int, test_good: int, test_per_defect: int, radius: float) -> None:
    """Check the arguments that ``write_mad`` and ``write_mip`` share.

    Raises:
        ValueError: if a number is out of its range.
    """
    if size < 16 or not 1 <= views <= LATTICE_VIEWS or test_good < 0 or test_per_defect < 0:
        msg = (
            f"size should be 16 or more, views 1 to {LATTICE_VIEWS}, test counts 0 or more; got size {size}, "
            f"views {views}, test_good {test_good}, test_per_defect {test_per_defect}."
        )
        raise ValueError(msg)
    if radius < 2:
        msg = f"radius should be 2 or more, got {radius}."
        raise ValueError(msg)


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Run PyTorch on one thread: these operations are too small for threads, which slow them down on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _test_pose(radius: float, rng: np.random.Generator) -> Tensor:
    """Choose a random pose (4, 4) on the upper hemisphere, float64."""
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
    target = torch.from_numpy(rng.uniform(-_TARGET_SPREAD, _TARGET_SPREAD, 3))
    return look_at(eye, target, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
