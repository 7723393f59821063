# SPDX-License-Identifier: Apache-2.0
"""Writer of COLMAP models as text."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomalib_pose.data.files import write_text
from anomalib_pose.geometry import Camera, so3_log
from anomalib_pose.sample_data.toys import Toy

_POINTS = 500
_POINT_ERROR = 0.5


def write_model(model: Path, names: list[str], cameras: Camera, toy: Toy, rng: np.random.Generator) -> None:
    """Write the COLMAP model of images: one PINHOLE camera, their poses, and points on the toy.

    The points have no tracks. The model's world frame is the toy's frame.

    Args:
        model: folder of the model.
        names: names of the images in the model.
        cameras: cameras (n) of the images; the model uses the intrinsics of the first camera for all.
        toy: toy with the points.
        rng: random generator that selects the points.
    """
    K = cameras.K[0]  # noqa: N806
    numbers = " ".join(repr(float(value)) for value in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    write_text(model / "cameras.txt", f"1 PINHOLE {cameras.width} {cameras.height} {numbers}\n")
    lines = []
    for number, (name, viewmat) in enumerate(zip(names, cameras.viewmat.double(), strict=True), 1):
        pose = " ".join(repr(value) for value in (*_quaternion(viewmat[:3, :3]), *viewmat[:3, 3].tolist()))
        lines += [f"{number} {pose} 1 {name}", ""]  # the second line would list the image's points
    write_text(model / "images.txt", "\n".join(lines) + "\n")
    mesh = toy.mesh
    indices = np.sort(rng.choice(len(mesh.vertices), min(_POINTS, len(mesh.vertices)), replace=False))
    colors = (mesh.colors * 255).round().int()
    lines = [
        " ".join(map(str, [number, *mesh.vertices[i].tolist(), *colors[i].tolist(), _POINT_ERROR]))
        for number, i in enumerate(indices, 1)
    ]
    write_text(model / "points3D.txt", "\n".join(lines) + "\n")


def _quaternion(rotation: Tensor) -> list[float]:
    """Convert a rotation (3, 3) to a unit quaternion wxyz."""
    omega = so3_log(rotation)
    half = float(omega.norm()) / 2
    axis = torch.nn.functional.normalize(omega, dim=0)
    return [math.cos(half), *(math.sin(half) * axis).tolist()]
