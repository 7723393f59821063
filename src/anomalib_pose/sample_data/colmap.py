# SPDX-License-Identifier: Apache-2.0
"""COLMAP models, as text."""

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
    """Write what COLMAP would have made of photographs: one PINHOLE camera, poses, and points on the toy.

    The points have no tracks, and the world is the toy's.

    Args:
        model: folder of the model.
        names: of the images, as the model has them.
        cameras: their cameras (n); all have the first one's intrinsics.
        toy: gives the points.
        rng: chooses them.
    """
    K = cameras.K[0]  # noqa: N806
    numbers = " ".join(repr(float(value)) for value in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    write_text(model / "cameras.txt", f"1 PINHOLE {cameras.width} {cameras.height} {numbers}\n")
    lines = []
    for number, (name, viewmat) in enumerate(zip(names, cameras.viewmat.double(), strict=True), 1):
        pose = " ".join(repr(value) for value in (*_quaternion(viewmat[:3, :3]), *viewmat[:3, 3].tolist()))
        lines += [f"{number} {pose} 1 {name}", ""]  # the second line would have the image's points
    write_text(model / "images.txt", "\n".join(lines) + "\n")
    mesh = toy.mesh
    chosen = np.sort(rng.choice(len(mesh.vertices), min(_POINTS, len(mesh.vertices)), replace=False))
    colors = (mesh.colors * 255).round().int()
    lines = [
        " ".join(map(str, [number, *mesh.vertices[i].tolist(), *colors[i].tolist(), _POINT_ERROR]))
        for number, i in enumerate(chosen, 1)
    ]
    write_text(model / "points3D.txt", "\n".join(lines) + "\n")


def _quaternion(rotation: Tensor) -> list[float]:
    """Unit quaternion wxyz of a rotation (3, 3)."""
    omega = so3_log(rotation)
    half = float(omega.norm()) / 2
    axis = torch.nn.functional.normalize(omega, dim=0)
    return [math.cos(half), *(math.sin(half) * axis).tolist()]
