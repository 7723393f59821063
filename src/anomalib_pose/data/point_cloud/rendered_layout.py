# SPDX-License-Identifier: Apache-2.0
"""Reader and writer of rendered clouds in the two layouts that PointAD published.

Both have ``2d_rendering/<name>/view_<k>.png``, ``2d_gt/<name>/view_<k>_gt.png``, ``2d_3d_cor/<name>/view_<k>_cor.npy``
(x, y and visibility of each point) and ``gt_pcd/<name>.pcd`` in folders ``test/good`` and ``test/<defect>``.
Organized clouds (MVTec 3D-AD, Eyecandies) also have ``xyz``, ``rgb`` and ``gt``, and
``2d_3d_cor/<name>/nonzero_indices.npy`` lists the cells of the grid that hold the points. Unorganized clouds
(Real3D-AD) have a point for each cell.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor

from anomalib_pose.data.images import read_image, resize_bicubic
from anomalib_pose.data.listing import CLOUD_SUFFIXES, data_files, file_named, is_good
from anomalib_pose.data.masks import read_defect_mask, read_mask
from anomalib_pose.data.parsers import parsing
from anomalib_pose.data.point_cloud.files import read_points, read_xyz, write_pcd
from anomalib_pose.data.point_cloud.rendered_cloud import (
    RenderedCloud,
    resize_mask,
    resize_nearest,
    to_bytes,
)

VIEWS, MASKS, CORRESPONDENCES, LABELS = "2d_rendering", "2d_gt", "2d_3d_cor", "gt_pcd"
CELLS = "nonzero_indices.npy"
_MAX_EMPTY = 0.1  # fraction of cells; published renderings may resize clouds in another way


def write_rendered(folder: Path, name: str, cloud: RenderedCloud) -> None:
    """Write the views of a cloud, their masks, and the correspondences between pixels and points.

    Args:
        folder: folder of good clouds or of one kind of defect, for example ``<category>/test/good``.
        name: name of the cloud, for example ``000``.
        cloud: the rendered cloud.
    """
    cells = cloud.valid.flatten()
    targets = [folder / part / name for part in (VIEWS, MASKS, CORRESPONDENCES)]
    for target in (*targets, folder / LABELS):
        target.mkdir(parents=True, exist_ok=True)
    digits = len(str(len(cloud.views) - 1))  # zero-padded, so that names sort by their numbers
    for number, (view, mask) in enumerate(zip(cloud.views, cloud.view_masks, strict=True)):
        stem = f"view_{number:0{digits}}"
        _save_image(targets[0] / f"{stem}.png", view.permute(1, 2, 0))
        _save_image(targets[1] / f"{stem}_gt.png", (mask[..., None] * 255).to(torch.uint8).expand(-1, -1, 3))
        rows = torch.cat([cloud.pixels[number].flip(-1), cloud.visible[number][:, None].to(torch.int16)], 1)
        np.save(targets[2] / f"{stem}_cor.npy", rows[cells].to(torch.int64).numpy())
    if cloud.organized:
        np.save(targets[2] / CELLS, cells.nonzero()[:, 0].numpy())
    labels = cloud.gt_mask.flatten()[cells]
    write_pcd(
        folder / LABELS / f"{name}.pcd", cloud.points.reshape(-1, 3)[cells], labels[:, None].float().expand(-1, 3)
    )


def write_original(folder: Path, name: str, xyz: Tensor, rgb: Tensor | None, gt_mask: Tensor | None) -> None:
    """Write an organized cloud at its original size, its photograph and its mask.

    Args:
        folder: folder of good clouds or of one kind of defect.
        name: name of the cloud.
        xyz: positions (H, W, 3).
        rgb: photograph (3, H, W) in [0, 1], or None.
        gt_mask: mask (H, W) in [0, 1]; None for an empty one.
    """
    for part in ("xyz", "gt", *(["rgb"] if rgb is not None else [])):
        (folder / part).mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "xyz" / f"{name}.tiff", xyz.float().numpy())
    mask = torch.zeros(xyz.shape[:2]) if gt_mask is None else gt_mask
    _save_image(folder / "gt" / f"{name}.png", to_bytes(mask))
    if rgb is not None:
        _save_image(folder / "rgb" / f"{name}.png", to_bytes(rgb).permute(1, 2, 0))


def write_index(root: Path, categories: dict[str, list[dict[str, Any]]]) -> None:
    """Write the lists of clouds that PointAD's own code reads, one for each category and one for all.

    Args:
        root: folder of the data set.
        categories: entries of each category, from ``index_entry``.
    """
    for stem, content in [*((name, {name: categories[name]}) for name in categories), ("all", categories)]:
        path = root / f"{stem}_meta.json"
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text(json.dumps({"train": {}, "test": content}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)


def index_entry(root: Path, folder: Path, name: str) -> dict[str, Any]:
    """Return the entry of a cloud in the lists of ``write_index``; paths are relative to the root.

    Args:
        root: folder of the data set.
        folder: folder of good clouds or of one kind of defect.
        name: name of the cloud.
    """
    base = folder.relative_to(root)
    organized = (folder / "xyz").is_dir()
    entry: dict[str, Any] = {
        "d2_mask_path": (base / "gt" / f"{name}.png" if organized else base / LABELS / f"{name}.pcd").as_posix(),
        "d3_pc": (base / "xyz" / f"{name}.tiff" if organized else base / LABELS / f"{name}.pcd").as_posix(),
        "cls_name": base.parts[0],
        "specie_name": folder.name,
        "anomaly": int(not is_good(folder.name)),
        "d2_render_img_path": (base / VIEWS / name).as_posix(),
        "d2_render_gt_path": (base / MASKS / name).as_posix(),
        "d2_corrdinate": (base / CORRESPONDENCES / name).as_posix(),
    }
    return entry | ({"d2_img_path": (base / "rgb" / f"{name}.png").as_posix()} if (folder / "rgb").is_dir() else {})


def read_rendered(folder: Path, name: str, size: int) -> RenderedCloud:
    """Read a rendered cloud of either layout.

    Args:
        folder: folder of good clouds or of one kind of defect, for example ``<category>/test/good``.
        name: name of the cloud.
        size: width and height of the views, and of the grid.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if views do not have this size, or correspondences contradict the cloud; the message names the file.
    """
    views = torch.stack(
        [to_bytes(_of_size(path, read_image(path)[0], size)) for path in view_files(folder / VIEWS / name)]
    )
    masks = torch.stack([_of_size(path, read_mask(path), size) > 0.5 for path in view_files(folder / MASKS / name)])
    organized = (folder / CORRESPONDENCES / name / CELLS).is_file()
    points, gt_mask, rgb = _read_organized(folder, name, size) if organized else _read_unorganized(folder, name, size)
    cells = _read_cells(folder / CORRESPONDENCES / name / CELLS, points) if organized else torch.arange(size * size)
    tables = _numbered_files(folder / CORRESPONDENCES / name, ".npy")
    if not len(views) == len(masks) == len(tables):
        msg = f"{folder}: {name} has {len(views)} views, {len(masks)} masks and {len(tables)} correspondences."
        raise ValueError(msg)
    _check_numbers(tables)
    pixels = torch.zeros(len(views), size * size, 2, dtype=torch.int16)
    visible = torch.zeros(len(views), size * size, dtype=torch.bool)
    for view, path in enumerate(tables):
        table = _read_correspondence(path, len(cells), size)
        pixels[view, cells] = table[:, [1, 0]].to(torch.int16)
        visible[view, cells] = table[:, 2] > 0
    _check_views(folder / VIEWS / name, views, pixels, visible)
    valid = torch.zeros(size * size, dtype=torch.bool)
    valid[cells] = True
    valid = valid.reshape(size, size)
    return RenderedCloud(
        torch.where(valid[..., None], points, 0.0), valid, organized, gt_mask, rgb, views, masks, pixels, visible
    )


def _check_views(folder: Path, views: Tensor, pixels: Tensor, visible: Tensor) -> None:
    """Check that each view of a cloud shows something, and points at more than one pixel."""
    for number, (view, places, shown) in enumerate(zip(views, pixels, visible, strict=True)):
        is_blank = bool((view == view[:, :1, :1]).all())
        if is_blank or not bool(shown.any()) or bool((places[shown] == places[shown][0]).all()):
            fault = "is blank" if is_blank else "shows no points, by its correspondences"
            msg = f"View {number} in {folder} {fault}: render the cloud again, or remove it."
            raise ValueError(msg)


def view_files(folder: Path) -> list[Path]:
    """List the images of a cloud's views in the order of their numbers.

    Raises:
        FileNotFoundError: if there are none.
    """
    return _numbered_files(folder, ".png")


def _numbered_files(folder: Path, suffix: str) -> list[Path]:
    """List the files of views in the order of the first number in their names: view_10 comes after view_9."""
    paths = [path for path in data_files(folder, (suffix,)) if re.match(r"view_.*\d", path.name)]
    if not paths:
        msg = f"There is no view_*{suffix} in {folder}: render the clouds with anomalib-pose render-clouds."
        raise FileNotFoundError(msg)
    return sorted(paths, key=_number)


def _number(path: Path) -> int:
    """Return the number of a view from the name of its file."""
    return int(re.findall(r"\d+", path.name)[0])


def _check_numbers(paths: list[Path]) -> None:
    """Check that the numbers of a cloud's views have no gap: views are compared by their position in the list."""
    numbers = [_number(path) for path in paths]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        names = ", ".join(map(str, numbers))
        msg = f"{paths[0].parent} should have views with consecutive numbers, found {names}: render the cloud again."
        raise ValueError(msg)


def _read_organized(folder: Path, name: str, size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Read points, mask of the defect, and photograph, resized to the grid."""
    xyz = read_xyz(file_named(folder / "xyz", name, CLOUD_SUFFIXES))
    points = resize_nearest(xyz, size)
    mask_path = file_named(folder / "gt", name)
    if is_good(folder.name) and not mask_path.is_file():
        gt_mask = torch.zeros(size, size, dtype=torch.bool)
    else:
        gt_mask = resize_mask((read_mask if is_good(folder.name) else read_defect_mask)(mask_path), size)
    photograph = file_named(folder / "rgb", name)
    if not photograph.is_file():
        return points, gt_mask, None
    rgb = read_image(photograph)[0]
    if rgb.shape[1] * xyz.shape[1] != rgb.shape[2] * xyz.shape[0]:
        msg = (
            f"{photograph} is {rgb.shape[2]} x {rgb.shape[1]}, but its cloud {xyz.shape[1]} x {xyz.shape[0]}: both "
            "should have one aspect ratio."
        )
        raise ValueError(msg)
    return points, gt_mask, to_bytes(resize_bicubic(rgb, size))


def _read_unorganized(folder: Path, name: str, size: int) -> tuple[Tensor, Tensor, None]:
    """Read points and the mask of the defect, one for each cell."""
    path = folder / LABELS / f"{name}.pcd"
    file = read_points(path)
    if len(file.points) != size * size or file.colors is None:
        msg = f"{path} should have {size * size} points with colors, one for each cell; it has {len(file.points)}."
        raise ValueError(msg)
    labels = (file.colors > 0.5).all(1)
    return file.points.reshape(size, size, 3), labels.reshape(size, size), None


def _read_cells(path: Path, points: Tensor) -> Tensor:
    """Read the indices of the cells that hold points (n,)."""
    cells = torch.from_numpy(_load_integers(path))
    count = points.shape[0] * points.shape[1]
    if cells.ndim != 1 or not len(cells) or not 0 <= int(cells.min()) <= int(cells.max()) < count:
        msg = f"{path} should hold indices of cells in 0..{count - 1}, it has shape {tuple(cells.shape)}."
        raise ValueError(msg)
    empty = int((points.reshape(-1, 3)[cells, 2] == 0).sum())
    if empty > _MAX_EMPTY * len(cells):
        msg = (
            f"{path} names {empty} of {len(cells)} cells that hold no point: cloud and rendering differ; render again."
        )
        raise ValueError(msg)
    return cells


def _read_correspondence(path: Path, count: int, size: int) -> Tensor:
    """Read x, y and visibility of ``count`` points in one view (count, 3)."""
    table = torch.from_numpy(_load_integers(path))
    if tuple(table.shape) != (count, 3) or not 0 <= int(table.min()) <= int(table[:, :2].max()) < size:
        msg = f"{path} should hold x, y below {size} and visibility of {count} points, it has {tuple(table.shape)}."
        raise ValueError(msg)
    return table


def _load_integers(path: Path) -> np.ndarray:
    """Read the integers of an array file; pickled objects are refused."""
    with parsing(path, "an array of integers", "render the cloud again, or copy the file again"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # a map refuses a shape beyond the file's size
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        msg = f"{path} should hold an array of integers."
        raise ValueError(msg)
    return array.astype(np.int64)


def _of_size(path: Path, image: Tensor, size: int) -> Tensor:
    """Check that the image of a view has the given side."""
    if tuple(image.shape[-2:]) != (size, size):
        msg = f"{path} is {image.shape[-1]} x {image.shape[-2]}: expected {size} x {size}; set size to that."
        raise ValueError(msg)
    return image


def _save_image(path: Path, pixels: Tensor) -> None:
    Image.fromarray(pixels.contiguous().numpy()).save(path)
