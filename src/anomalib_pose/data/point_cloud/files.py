# SPDX-License-Identifier: Apache-2.0
"""Readers of organized clouds (.tiff) and point lists (.ply, .pcd), and a writer of .pcd; errors name the file."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor

from anomalib_pose.data.parsers import parsing
from anomalib_pose.data.point_cloud.pcd import read_pcd
from anomalib_pose.scene.ply_table import read_ply_vertices

logger = logging.getLogger(__name__)

MINIMUM_POINTS = 100
"""A cloud with fewer points is refused as a mistake."""
_MAX_CELLS = 1 << 28
"""Largest number of values in an organized cloud; a larger one is refused before it is decompressed."""


@dataclass(frozen=True)
class PointFile:
    """Points of a file, in stored order.

    Args:
        points: positions (n, 3), float32, in the file's frame and unit; NaN where the sensor has no measurement, which
            files store as NaN, infinity or (0, 0, 0).
        colors: RGB (n, 3) in [0, 1], or None if the file has no colors.
    """

    points: Tensor
    colors: Tensor | None


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Prefix the message of each ``ValueError`` with the path of the file that the block processes."""
    try:
        yield
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def read_xyz(path: Path) -> Tensor:
    """Read the organized cloud (H, W, 3) of a .tiff, float32; cells without a point are 0.

    A cell whose position is not finite, or whose z is 0, has no point.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read, does not hold three channels of floats, or has fewer than 100 points.
    """
    if not path.is_file():
        msg = f"There is no file {path}: expected a .tiff with x, y and z of every pixel."
        raise FileNotFoundError(msg)
    advice = "copy it again, or remove it from the data set"
    with parsing(path, "a .tiff", advice), tifffile.TiffFile(path) as file:
        shape = file.series[0].shape
        if math.prod(shape) > _MAX_CELLS:
            msg = f"it states the shape {shape}, more than {_MAX_CELLS} values"
            raise ValueError(msg)
        array = np.asarray(file.asarray())
    if array.dtype.kind != "f" or array.ndim != 3 or array.shape[2] != 3:
        msg = f"{path} should hold floats of shape (height, width, 3), x, y and z; it has {array.dtype} {array.shape}."
        raise ValueError(msg)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers beyond float32 become infinite
        xyz = torch.from_numpy(array.astype(np.float32))
    xyz = torch.where(torch.isfinite(xyz).all(-1, keepdim=True), xyz, 0.0)
    _check_count(path, int((xyz[..., 2] != 0).sum()))
    return xyz


def read_points(path: Path) -> PointFile:
    """Read the points of a .ply or .pcd file; a .pcd may be text, binary or compressed.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the suffix is neither .ply nor .pcd, or the file cannot be read, lacks x, y or z, or has fewer
            than 100 points with a measurement.
    """
    if path.suffix.lower() == ".ply":
        table = read_ply_vertices(path)
    elif path.suffix.lower() == ".pcd":
        table = read_pcd(path)
    else:
        msg = f"{path} should be a .ply or .pcd file."
        raise ValueError(msg)
    names = table.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        msg = f"{path} should have x, y and z of its points; it has {', '.join(names)}."
        raise ValueError(msg)
    if any(table.dtype[name].shape for name in "xyz"):
        msg = f"{path} should have one number as each of x, y and z of a point."
        raise ValueError(msg)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers beyond float32 become infinite
        points = np.stack([table[name].astype(np.float32) for name in "xyz"], 1)
    with np.errstate(invalid="ignore"):  # signaling NaN
        measured = np.isfinite(points).all(1) & (points != 0).any(1)
    points[~measured] = np.nan
    _check_count(path, int(measured.sum()))
    colors = _colors(table)
    return PointFile(torch.from_numpy(points), None if colors is None else torch.from_numpy(colors))


def read_measured_points(path: Path) -> Tensor:
    """Read the points (n, 3) of a .ply or .pcd file that have a measurement; the number of the others is logged.

    Raises:
        FileNotFoundError: see ``read_points``.
        ValueError: see ``read_points``.
    """
    points = read_points(path).points
    return points[measured_points(path, points)]


def measured_points(path: Path, points: Tensor) -> Tensor:
    """Return which points (n, 3) have a measurement, finite numbers other than (0, 0, 0); log how many have none."""
    measured = points.isfinite().all(1) & (points != 0).any(1)
    if not bool(measured.all()):
        dropped = int((~measured).sum())
        logger.warning("%s: %d of %d points are zero or not finite and are dropped.", path, dropped, len(points))
    return measured


def write_pcd(path: Path, points: Tensor, colors: Tensor) -> None:
    """Write points (n, 3) and colors (n, 3) in [0, 1] as a binary .pcd."""
    dtype = np.dtype([("xyz", "<f4", 3), ("rgb", "<u4")])
    channels = (colors.clamp(0, 1) * 255).round().to(torch.int64).numpy().astype(np.uint32)
    table = np.empty(len(points), dtype)
    table["xyz"] = points.numpy()
    table["rgb"] = channels[:, 0] << 16 | channels[:, 1] << 8 | channels[:, 2]
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\n"
        f"COUNT 1 1 1 1\nWIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA binary\n"
    )
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(header.encode() + table.tobytes())
    temporary.replace(path)


def _check_count(path: Path, count: int) -> None:
    if count < MINIMUM_POINTS:
        msg = f"{path} has {count} points; a cloud should have {MINIMUM_POINTS} or more: record it again, or remove it."
        raise ValueError(msg)


def _colors(table: np.ndarray) -> np.ndarray | None:
    """Return RGB (n, 3) in [0, 1] from three columns, or from the column into which .pcd files pack three bytes."""
    names = set(table.dtype.names or ())
    if {"red", "green", "blue"} <= names:
        channels = np.stack([table[name].astype(np.float32) for name in ("red", "green", "blue")], 1)
        return channels / (255 if table.dtype["red"].kind in "iu" else 1)
    packed = next((name for name in ("rgb", "rgba") if name in names), None)
    if packed is None or table.dtype[packed].itemsize != 4:
        return None
    bits = np.ascontiguousarray(table[packed]).view(np.uint32)
    return np.stack([bits >> shift & 255 for shift in (16, 8, 0)], 1).astype(np.float32) / 255
