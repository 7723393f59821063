# SPDX-License-Identifier: Apache-2.0
"""Data sets of ``pose_agnostic.py``: their description, the selection of training views, and images as tensors."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from anomalib_pose.data import MAD, MIP, PosedFolder
from anomalib_pose.data.posed.colmap import find_colmap
from anomalib_pose.data.posed.datamodule import PosedDataModule
from anomalib_pose.data.posed.dataset import PosedDataset
from anomalib_pose.geometry import Camera


@dataclass(frozen=True)
class DataSpec:
    """One data set of the benchmark.

    Args:
        name: name in tables and plots.
        root: folder of the categories (MAD's layout, or one of MIP's), or without a category the folder with
            ``transforms.json``.
        category: folder of the object in MAD's layout; empty for ``PosedFolder``.
        queries: MAD's layout: another root, whose test images in other light are used; ``PosedFolder``: the folder of
            the queries (default: ``queries`` if it exists, else views are held out).
        masks: ``PosedFolder``: the folder of the defects' masks (default: ``ground_truth`` if it exists).
        views: training views that are used, evenly spaced: a fraction below 1, or a count; 0 for all.
    """

    name: str
    root: str
    category: str = ""
    queries: str = ""
    masks: str = ""
    views: float = 0.0

    def __post_init__(self) -> None:
        if not self.name or not self.root or set("/\\: ") & set(self.name):
            msg = f"A data set needs a name without spaces, colons and slashes, and a root, got {self}."
            raise ValueError(msg)
        if self.views < 0 or (self.views >= 1 and self.views != int(self.views)):
            msg = f"views of {self.name} should be a fraction below 1, a whole count, or 0 for all, got {self.views}."
            raise ValueError(msg)


_OPTIONS = ("queries", "masks", "views")


def parse_data(text: str) -> DataSpec:
    """Read ``NAME=ROOT[:CATEGORY][:queries=ROOT2][:masks=FOLDER][:views=0.1]``.

    Raises:
        ValueError: if the text does not have this form.
    """
    name, equals, rest = text.partition("=")
    root, *parts = rest.split(":")
    values: dict[str, Any] = {}
    for part in parts:
        key, separator, value = part.partition("=")
        key, value = (key, value) if separator else ("category", part)
        if key not in {"category", *_OPTIONS} or key in values or not value:
            msg = f"{text!r} has {part!r}: expected NAME=ROOT:CATEGORY and {', '.join(f'{o}=...' for o in _OPTIONS)}."
            raise ValueError(msg)
        values[key] = value
    if not equals:
        msg = f"A data set is given as NAME=ROOT:CATEGORY, got {text!r}."
        raise ValueError(msg)
    return _spec({"name": name, "root": root, **values}, text)


def read_data_file(path: Path) -> list[DataSpec]:
    """Read a YAML file: a list of data sets, each with the fields of ``DataSpec``.

    Raises:
        ValueError: if the file does not hold such a list.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = {field.name for field in fields(DataSpec)}
    if not isinstance(content, list) or not all(isinstance(entry, dict) and set(entry) <= names for entry in content):
        msg = f"{path} should hold a list of data sets with {', '.join(sorted(names))}."
        raise ValueError(msg)
    return [_spec(entry, str(path)) for entry in content]


def _spec(values: dict[str, Any], where: str) -> DataSpec:
    try:
        spec = DataSpec(**{**values, "views": float(values.get("views", 0))})
    except (TypeError, ValueError) as error:
        msg = f"{where}: {error}"
        raise ValueError(msg) from error
    # Absolute paths, because settings identify a run and the benchmark may be started from any folder.
    queries = str(Path(spec.queries).resolve()) if spec.queries and spec.category else spec.queries
    return replace(spec, root=str(Path(spec.root).resolve()), queries=queries)


def select_views(count: int, views: float) -> list[int]:
    """Select evenly spaced training views: the middles of equal intervals of their indices.

    Args:
        count: number of training views of the data set.
        views: see ``DataSpec``; a fraction selects at least one view.

    Returns:
        Indices of the selected views.

    Raises:
        ValueError: if ``views`` is above ``count``.
    """
    if not views:
        return list(range(count))
    selected = max(1, round(views * count)) if views < 1 else int(views)
    if selected > count:
        msg = f"Expected views of at most {count}, the number of training views, got {selected}."
        raise ValueError(msg)
    return [(2 * index + 1) * count // (2 * selected) for index in range(selected)]


@dataclass(frozen=True)
class Views:
    """Images of one part of a data set.

    Args:
        image: RGB (n, 3, h, w) in [0, 1].
        K: intrinsics (n, 3, 3), pixels.
        camera_to_world: poses (n, 4, 4), or None if one is missing.
        foreground: masks of the object (n, h, w), or None if one is missing.
        label: (n,) 1 for a defect.
        mask: masks of the defects (n, h, w), or None without masks.
        files: last two parts of the paths.
    """

    image: Tensor
    K: Tensor
    camera_to_world: Tensor | None
    foreground: Tensor | None
    label: Tensor
    mask: Tensor | None
    files: list[str]

    def __len__(self) -> int:
        return len(self.image)

    @property
    def cameras(self) -> Camera:
        """Cameras of the views; their poses must be known."""
        height, width = self.image.shape[-2:]
        return Camera(self.camera_to_world, self.K, width, height)

    def to(self, device: str) -> "Views":
        """Move images, cameras and masks of the object to another device; labels and masks of defects stay."""
        moved = {name: getattr(self, name) for name in ("image", "K", "camera_to_world", "foreground")}
        return replace(self, **{name: None if value is None else value.to(device) for name, value in moved.items()})


def load(spec: DataSpec, size: int) -> tuple[PosedDataset, PosedDataset]:
    """Load the selected training views and the labeled queries.

    Args:
        spec: the data set.
        size: longer side of the images, pixels; 0 for the stored size.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: if queries have no labels, or ``spec.views`` is above the number of views.
    """
    data = _set_up(_datamodule(spec, spec.root, size))
    train = data.train_data.subsample(select_views(len(data.train_data), spec.views))
    test = data.test_data
    if spec.category and spec.queries:
        test = _set_up(_datamodule(spec, spec.queries, size)).test_data
    if not (test.has_normal or test.has_anomalous):
        msg = f"The queries of {spec.name} have no labels: sort them into subfolders 'good' and kinds of defects."
        raise ValueError(msg)
    return train, test


def _set_up(data: PosedDataModule) -> PosedDataModule:
    data.prepare_data()
    data.setup()
    return data


def _datamodule(spec: DataSpec, root: str, size: int) -> PosedDataModule:
    options = {"image_size": size or None, "num_workers": 0}
    if spec.category:
        synthetic = (Path(root) / spec.category / "transforms.json").is_file()
        in_colmap = not synthetic and find_colmap(Path(root) / spec.category) is not None
        return (MIP if in_colmap else MAD)(root, spec.category, **options)
    queries = spec.queries or ("queries" if (Path(root) / "queries").is_dir() else None)
    masks = spec.masks or ("ground_truth" if (Path(root) / "ground_truth").is_dir() else None)
    return PosedFolder(root, queries, masks if queries else None, **options)


def stacked(dataset: PosedDataset) -> Views:
    """Stack all images of a data set."""
    items = [dataset[index] for index in range(len(dataset))]

    def stack_if_complete(values: Iterable[Tensor | None]) -> Tensor | None:
        tensors = [value for value in values if value is not None]
        return torch.stack(tensors) if len(tensors) == len(items) else None

    return Views(
        torch.stack([item.image.as_subclass(Tensor) for item in items]),
        torch.stack([item.intrinsics for item in items]),
        stack_if_complete(None if item.camera_to_world is None else item.camera_to_world.float() for item in items),
        stack_if_complete(item.foreground for item in items),
        torch.tensor([int(item.gt_label) for item in items]),
        stack_if_complete(None if item.gt_mask is None else item.gt_mask.as_subclass(Tensor).float() for item in items),
        ["/".join(Path(item.image_path).parts[-2:]) for item in items],
    )
