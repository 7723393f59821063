# SPDX-License-Identifier: Apache-2.0
"""Readers of reference views in Looking3D's layout: ``<id>_<distance>_<azimuth>_<elevation>`` with four suffixes.

Each view has ``.png`` (gray), ``.json`` (camera), ``_depth.npy`` (metric depth) and ``.npy`` (correspondences).
"""

import logging
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from anomalib_pose.compare.query_content import has_content
from anomalib_pose.data.decoding import image_size
from anomalib_pose.data.files import read_json
from anomalib_pose.data.images import read_image, resize_bicubic
from anomalib_pose.data.listing import data_files, first_names, is_data
from anomalib_pose.data.parsers import parsing
from anomalib_pose.data.posed.transforms_json import read_pose
from anomalib_pose.geometry import Camera
from anomalib_pose.render.reference_views import GRID_SIZE, IMAGE_SIZE

logger = logging.getLogger(__name__)
_reported: set[Path] = set()

_KEYS = ("pxy", "is_visible", "xyz")
_MAX_POSITION = 1e9
_RECONSTRUCT = np.empty(0).__reduce__()[0]
# The published files hold arrays of a trimesh class, whose content is that of plain arrays.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("trimesh.caching", "TrackedArray"): np.ndarray,
}


@dataclass(frozen=True)
class Correspondences:
    """Correspondences between a reference view and the surface of its shape.

    Args:
        pixels: (n, 2) int64, (row, column) of points on the surface, the same points in every view of a shape; they
            may lie outside the image.
        visible: (n,) bool, whether the point is visible in the view.
        xyz: (32, 32, 3) float32, position on the surface in each cell, in the shape's frame; -1 where it is unknown.
    """

    pixels: Tensor
    visible: Tensor
    xyz: Tensor


@dataclass(frozen=True)
class ReferenceViewFile:
    """Files of one reference view.

    Args:
        image_path: the image; the other files lie beside it.
        shape_id: name of the shape, from the files' names.
        distance: distance of the camera from the origin.
        azimuth: azimuth of the camera, degrees in [0, 360).
        elevation: elevation of the camera, degrees.
    """

    image_path: Path
    shape_id: str
    distance: float
    azimuth: float
    elevation: float

    @property
    def correspondences_path(self) -> Path:
        """File of the correspondences: the ``.npz`` if it exists, else the ``.npy``."""
        archive = self.image_path.with_suffix(".npz")
        return archive if archive.is_file() else self.image_path.with_suffix(".npy")

    def image(self) -> Tensor:
        """Read the image (3, 256, 256), RGB in [0, 1]; an image of another size is resized.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if the image cannot be read, is not square or small, or shows nothing.
        """
        image, _ = read_image(self.image_path)
        height, width = image.shape[-2:]
        if height != width:
            msg = (
                f"Reference views are square, {self.image_path} is {width} x {height}: render it with "
                "anomalib-pose render-views."
            )
            raise ValueError(msg)
        if height < GRID_SIZE or not bool(has_content(image[None])):
            fault = "shows nothing" if height >= GRID_SIZE else f"is {width} x {height} pixels small"
            msg = f"The reference view {self.image_path} {fault}: render the views again, or remove this one."
            raise ValueError(msg)
        return resize_bicubic(image, IMAGE_SIZE)

    def correspondences(self) -> Correspondences:
        """Read the points on the surface and the grid of positions.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if it does not hold correspondences.
        """
        return read_correspondences(self.correspondences_path)

    def camera(self) -> Camera:
        """Read the camera, float64, for the image at its stored size.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if it does not hold a camera.
        """
        path = self.image_path.with_suffix(".json")
        content = read_json(path)
        try:
            intrinsics = torch.tensor(content.get("K"), dtype=torch.float64).reshape(3, 3)
        except (TypeError, ValueError, RuntimeError) as error:
            msg = f"{path} should have 'K', a 3 x 3 matrix in pixels, found {content.get('K')!r}."
            raise ValueError(msg) from error
        pose = read_pose(content.get("RT_"), f"{path}, 'RT_',")
        return Camera(pose, intrinsics, *image_size(self.image_path))


def find_reference_views(folder: Path) -> list[ReferenceViewFile]:
    """List the views in a folder, sorted by elevation, distance and azimuth; of equal cameras only the first is listed.

    Published sets have azimuth 0 and azimuth 360, which are the same view.

    Raises:
        FileNotFoundError: if the folder does not exist or has no view, or a view has no correspondences.
        ValueError: if an image's name does not have the form of the layout, or there are views of several shapes.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    images = data_files(folder, (".png",))
    if not images:
        msg = f"There are no reference views <id>_<distance>_<azimuth>_<elevation>.png in {folder}."
        raise FileNotFoundError(msg)
    parsed = [_parse_name(path) for path in images]
    views: dict[tuple[float, float, float], ReferenceViewFile] = {}
    for path, view in zip(images, parsed, strict=True):
        if not {f"{path.stem}.npy", f"{path.stem}.npz"} & names:
            msg = f"The reference view {path} has no correspondences: expected {path.with_suffix('.npy')}."
            raise FileNotFoundError(msg)
        views.setdefault((view.elevation, view.distance, view.azimuth), view)
    shapes = sorted({view.shape_id for view in parsed})
    if len(shapes) > 1:
        msg = f"The reference views in {folder} should be of one shape, their names begin with {', '.join(shapes)}."
        raise ValueError(msg)
    _report_without_image(folder, names)
    return [views[key] for key in sorted(views)]


def _report_without_image(folder: Path, names: set[str]) -> None:
    """Log the correspondences in a folder of views that have no image."""
    images = {Path(name).stem for name in names if name.lower().endswith(".png")}
    tables = (Path(name) for name in sorted(names) if is_data(Path(name)) and name.endswith((".npy", ".npz")))
    missing = [path.stem for path in tables if not path.stem.endswith("_depth") and path.stem not in images]
    if missing and folder not in _reported:
        _reported.add(folder)
        logger.warning(
            "%d reference views in %s have no image .png and are not used: %s.",
            len(missing), folder, first_names(missing),
        )  # fmt: skip


def spread_views(files: list[ReferenceViewFile], count: int) -> list[ReferenceViewFile]:
    """Select views that are spread evenly over a list, in its order.

    Args:
        files: the views of one shape.
        count: number of views to select.

    Raises:
        ValueError: if ``count`` is below 1 or above the number of views.
    """
    if not 1 <= count <= len(files):
        folder = files[0].image_path.parent if files else "the folder"
        msg = (
            f"{folder} has {len(files)} different views, {count} are asked for: render more with "
            "anomalib-pose render-views, or ask for fewer."
        )
        raise ValueError(msg)
    return [files[i * len(files) // count] for i in range(count)]


def read_views(files: list[ReferenceViewFile]) -> tuple[Tensor, Tensor]:
    """Read images (n, 3, 256, 256) in [0, 1], and positions on the shape (n, 32, 32, 3), -1 where they are unknown.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file cannot be read; the message names it.
    """
    images = torch.stack([file.image() for file in files])
    return images, torch.stack([file.correspondences().xyz for file in files])


def read_correspondences(path: Path) -> Correspondences:
    """Read a view's correspondences from an ``.npz``, or from a pickled dictionary of arrays in an ``.npy``.

    The reader of pickles accepts arrays only, and runs no code that a file names.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it does not hold correspondences.
    """
    if not path.is_file():
        msg = f"There is no file {path} with the correspondences of a reference view."
        raise FileNotFoundError(msg)
    with parsing(path, "correspondences", "copy it again, or write it with anomalib-pose render-views"):
        content = _read_archive(path) if path.suffix == ".npz" else _read_pickled_dictionary(path)
    arrays = [np.asarray(content.get(key)) for key in _KEYS]
    pixels, visible, xyz = arrays
    shapes = {key: array.shape for key, array in zip(_KEYS, arrays, strict=True)}
    n = len(visible) if visible.ndim == 1 else -1
    numeric = all(array.dtype.kind in "biuf" for array in arrays)
    if not numeric or pixels.shape != (n, 2) or xyz.shape != (GRID_SIZE, GRID_SIZE, 3):
        msg = f"{path} should have arrays pxy (n, 2), is_visible (n,) and xyz (32, 32, 3), found {shapes}."
        raise ValueError(msg)
    if not all(np.isfinite(array).all() for array in arrays) or np.abs(xyz).max() > _MAX_POSITION:
        msg = f"{path} has numbers that are not finite, or too large: render the view again."
        raise ValueError(msg)
    if not (xyz != -1).any():
        msg = f"{path} has no position on the surface, all of xyz is -1: render the view again."
        raise ValueError(msg)
    return Correspondences(
        torch.from_numpy(pixels.astype(np.int64)),
        torch.from_numpy(visible.astype(bool)),
        torch.from_numpy(xyz.astype(np.float32)),
    )


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that loads numpy's arrays only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            msg = f"it names {module}.{name}, which is not an array and is not loaded"
            raise pickle.UnpicklingError(msg)
        return _ALLOWED[module, name]


def _read_pickled_dictionary(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        dtype = _read_header(file)
        if not dtype.hasobject:
            msg = f"expected a pickled dictionary, found an array of {dtype}"
            raise ValueError(msg)
        array = _ArraysOnly(file).load()
    content = array.item() if isinstance(array, np.ndarray) and array.size == 1 else array
    if not isinstance(content, dict):
        msg = f"expected a dictionary, found {type(content).__name__}"
        raise TypeError(msg)
    return content


def _read_header(file: BinaryIO) -> np.dtype:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        msg = f"expected version 1 or 2 of numpy's format, found {version}"
        raise ValueError(msg)
    return readers[version](file)[2]


def _read_archive(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _parse_name(path: Path) -> ReferenceViewFile:
    shape_id, *fields = path.stem.rsplit("_", 3)
    try:
        distance, azimuth, elevation = (float(field) for field in fields)
        if not all(map(math.isfinite, (distance, azimuth, elevation))):
            raise ValueError(path.name)  # noqa: TRY301
    except ValueError as error:
        msg = f"A reference view is named <id>_<distance>_<azimuth>_<elevation>.png, in degrees, found {path}."
        raise ValueError(msg) from error
    return ReferenceViewFile(path, shape_id, distance, azimuth % 360, elevation)
