# SPDX-License-Identifier: Apache-2.0
"""Cameras of the training images as buffers of a detector, so that a checkpoint knows how to prepare queries."""

from typing import Any

import torch
from torch import Tensor

from anomalib_pose.buffers import DoubleBuffers, resize_buffers
from anomalib_pose.data.posed.query_format import QueryCamera, QueryFormat

_COEFFICIENTS = 8
_COLUMNS = 2 + 2 + 1 + 9 + 1 + _COEFFICIENTS


class QueryCameras(DoubleBuffers):
    """Format of the queries of a fitted object; empty until ``store``.

    Buffers: cameras (n, 23) float64, one row for each aspect ratio of the training images: stored width and height,
    width and height of the content of prepared images, whether the lens is ambiguous, K by rows, number of distortion
    coefficients, and the coefficients; white_background, whether the datamodule painted the background white.
    """

    cameras: Tensor
    white_background: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cameras", torch.zeros(0, _COLUMNS, dtype=torch.float64))
        self.register_buffer("white_background", torch.tensor(data=False))

    def store(self, query_format: QueryFormat | None) -> None:
        """Store a format, or none.

        Args:
            query_format: format of the training images; None if the data do not tell it.
        """
        rows = [] if query_format is None else [_row(camera) for camera in query_format.cameras]
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, _COLUMNS)
        self.cameras = table.to(self.cameras.device)
        white = query_format is not None and query_format.white_background
        self.white_background = torch.tensor(white, device=self.cameras.device)

    def format(self, size: tuple[int, int], *, white_background: bool) -> QueryFormat | None:
        """Return the stored format, or None if there is none.

        Args:
            size: width and height of the model's images.
            white_background: whether the training views are on white.
        """
        cameras = tuple(_camera(row) for row in self.cameras.tolist())
        return QueryFormat(size, cameras, white_background or bool(self.white_background)) if cameras else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the number of cameras from the checkpoint; checkpoints of earlier versions have none."""
        state_dict.setdefault(f"{prefix}cameras", self.cameras[:0])
        state_dict.setdefault(f"{prefix}white_background", torch.zeros_like(self.white_background))
        resize_buffers(self, ("cameras",), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _row(camera: QueryCamera) -> list[float]:
    coefficients = [*camera.distortion, *[0.0] * (_COEFFICIENTS - len(camera.distortion))]
    intrinsics = camera.K.flatten().tolist()
    return [
        camera.width, camera.height, *camera.content, float(camera.ambiguous), *intrinsics,
        len(camera.distortion), *coefficients,
    ]  # fmt: skip


def _camera(row: list[float]) -> QueryCamera:
    width, height, *content = (int(value) for value in row[:4])
    intrinsics, count = torch.tensor(row[5:14], dtype=torch.float64).reshape(3, 3), int(row[14])
    return QueryCamera(intrinsics, width, height, (content[0], content[1]), tuple(row[15 : 15 + count]), bool(row[4]))
