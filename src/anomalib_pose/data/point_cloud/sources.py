# SPDX-License-Identifier: Apache-2.0
"""Sources of rendered clouds: raw recordings, which are rendered on loading, or renderings on disk."""

import hashlib
import logging
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from anomalib.data.utils import LabelName
from torch import Tensor

from anomalib_pose.data.images import read_image
from anomalib_pose.data.listing import (
    CLOUD_SUFFIXES,
    data_files,
    data_folders,
    file_named,
    first_names,
    image_files,
    is_good,
    warn_without_good,
)
from anomalib_pose.data.masks import read_defect_mask, read_mask
from anomalib_pose.data.parsers import parsing
from anomalib_pose.data.point_cloud.files import name_file_in_errors, read_xyz
from anomalib_pose.data.point_cloud.preprocessing import isolate_object
from anomalib_pose.data.point_cloud.rendered_cloud import (
    RenderedCloud,
    RenderSettings,
    front_view_index,
    render_organized,
)
from anomalib_pose.data.point_cloud.rendered_layout import VIEWS, read_rendered, view_files

logger = logging.getLogger(__name__)

_CACHE_VERSION = 1
"""Version of the renderings. Increase it when equal recordings and settings give different renderings."""
_RENAMED_FIELDS = {"organised": "organized"}
"""Field names in caches of version 0.1, with their present names."""


@dataclass(frozen=True)
class CloudSample:
    """One recording.

    Args:
        folder: folder of good recordings or of one kind of defect, for example ``<category>/test/good``.
        name: name of the recording's files, without suffix.
        category: name of the kind of object.
        label: normal or abnormal.
        image_path: photograph, or the image of a view.
        mask_path: mask of the defect, or None.
    """

    folder: Path
    name: str
    category: str
    label: LabelName
    image_path: Path
    mask_path: Path | None


class CloudSource(Protocol):
    """Reader of the recordings of one layout."""

    def samples(self, folder: Path) -> list[CloudSample]:
        """List the recordings in the test part of a category's folder."""

    def load(self, sample: CloudSample) -> RenderedCloud:
        """Read the cloud of a recording with its views."""


def _by_stem(paths: list[Path]) -> dict[str, Path]:
    """Return files by their names without suffix.

    Raises:
        ValueError: if two files have one name.
    """
    files: dict[str, Path] = {}
    for path in paths:
        if files.setdefault(path.stem, path) != path:
            msg = f"{files[path.stem]} and {path.name} are two files of one cloud: keep one of them."
            raise ValueError(msg)
    return files


def _report(folder: Path, paths: list[Path], things: str, fault: str) -> None:
    """Log the files of a folder that have a fault."""
    if paths:
        names = first_names([str(path.relative_to(folder)) for path in paths])
        logger.warning("%d %s in %s %s: %s.", len(paths), things, folder, fault, names)


@dataclass(frozen=True)
class RawSource:
    """Source for MVTec 3D-AD as published: ``test/<kind>`` with ``xyz``, ``rgb`` and ``gt``; it renders on loading.

    Args:
        settings: settings of the rendering.
        seed: makes the search for the supporting plane repeatable.
        cache: folder that stores rendered clouds; None to render them each time.
    """

    settings: RenderSettings
    seed: int = 0
    cache: Path | None = None

    def samples(self, folder: Path) -> list[CloudSample]:
        """List the recordings in the test part of a category's folder.

        Raises:
            FileNotFoundError: if a folder, photograph or mask is missing, or there is no cloud.
        """
        samples = []
        for kind in _kinds(folder, "xyz"):
            photographs, masks = _by_stem(image_files(kind / "rgb")), _by_stem(image_files(kind / "gt"))
            label, clouds = _label(kind), list(_by_stem(data_files(kind / "xyz", CLOUD_SUFFIXES)).values())
            unused = [path for path in photographs.values() if path.stem not in {cloud.stem for cloud in clouds}]
            _report(kind, unused, "photographs", "have no cloud and are not used")
            for cloud in clouds:
                if cloud.stem not in photographs:
                    msg = f"The cloud {cloud} has no photograph: expected {kind / 'rgb' / cloud.stem}.png."
                    raise FileNotFoundError(msg)
                if label == LabelName.ABNORMAL and cloud.stem not in masks:
                    msg = f"The cloud {cloud} has no mask: expected {kind / 'gt' / cloud.stem}.png."
                    raise FileNotFoundError(msg)
                image, mask = photographs[cloud.stem], masks.get(cloud.stem)
                samples.append(CloudSample(kind, cloud.stem, folder.name, label, image, mask))
        return _require_samples(samples, folder, "xyz/<name>.tiff")

    def load(self, sample: CloudSample) -> RenderedCloud:
        """Render the cloud of a recording, or read its rendering from the cache.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file cannot be read, sizes differ, or the cloud has no points outside the plane.
        """
        cache_path = None if self.cache is None else self.cache / f"{self._key(sample)}.npz"
        if cache_path is not None and cache_path.is_file():
            return _read_cache(cache_path)
        xyz, rgb, gt_mask = self.original(sample)
        with name_file_in_errors(_cloud_path(sample)):
            cloud = render_organized(xyz, self.settings, gt_mask, rgb)
        if cache_path is not None:
            _write_cache(cache_path, cloud)
        return cloud

    def original(self, sample: CloudSample) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Read the object's cloud (S, S, 3), photograph (3, S, S) and mask (S, S), before resizing to the grid.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file cannot be read, sizes differ, or the cloud has no points outside the plane.
        """
        path = _cloud_path(sample)
        xyz = read_xyz(path)
        rgb, _ = read_image(sample.image_path)
        read_gt_mask = read_defect_mask if sample.label == LabelName.ABNORMAL else read_mask
        gt_mask = None if sample.mask_path is None else read_gt_mask(sample.mask_path)
        for image_path, channels in ((sample.image_path, rgb), (sample.mask_path, gt_mask)):
            if channels is not None and channels.shape[-2:] != xyz.shape[:2]:
                msg = (
                    f"{image_path} is {channels.shape[-1]} x {channels.shape[-2]}, but its cloud {path} is "
                    f"{xyz.shape[1]} x {xyz.shape[0]}: both should have one size."
                )
                raise ValueError(msg)
        with name_file_in_errors(path):
            return isolate_object(xyz, rgb, gt_mask, self.seed)

    def _key(self, sample: CloudSample) -> str:
        paths = [_cloud_path(sample), sample.image_path, sample.mask_path]
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path]
        content = repr((_CACHE_VERSION, stats, sorted(asdict(self.settings).items()), self.seed))
        return hashlib.sha256(content.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class RenderedSource:
    """Source for renderings on disk, in either layout that PointAD published.

    Args:
        size: width and height of the views in pixels.
    """

    size: int = 336

    def samples(self, folder: Path) -> list[CloudSample]:
        """List the rendered recordings in the test part of a category's folder.

        Raises:
            FileNotFoundError: if a folder is missing, or there is no rendering.
        """
        samples = []
        for kind in _kinds(folder, VIEWS):
            photographs, masks = _by_stem(image_files(kind / "rgb")), _by_stem(image_files(kind / "gt"))
            rendered = data_folders(kind / VIEWS)
            clouds = _by_stem(data_files(kind / "xyz", CLOUD_SUFFIXES))
            _report(kind, [path for stem, path in clouds.items() if stem not in {views.name for views in rendered}],
                    "clouds", "have no rendering and are not used")  # fmt: skip
            for views in rendered:
                paths = view_files(views)
                image = photographs.get(views.name, paths[front_view_index(len(paths))])
                samples.append(CloudSample(kind, views.name, folder.name, _label(kind), image, masks.get(views.name)))
        without = [sample for sample in samples if sample.image_path.parent.name != "rgb"]
        if len(without) < len(samples):
            _report(folder, [sample.folder / sample.name for sample in without], "clouds",
                    "have no photograph, unlike others: their scores compare badly")  # fmt: skip
        return _require_samples(samples, folder, f"{VIEWS}/<name>")

    def load(self, sample: CloudSample) -> RenderedCloud:
        """Read the rendered cloud; ``read_rendered`` lists the errors."""
        return read_rendered(sample.folder, sample.name, self.size)


def is_rendered(folder: Path) -> bool:
    """Return whether the test part of a category's folder has renderings."""
    return any((kind / VIEWS).is_dir() for kind in data_folders(folder / "test"))


def _kinds(folder: Path, part: str) -> list[Path]:
    test = folder / "test"
    if not test.is_dir():
        msg = f"There is no folder {test}: expected subfolders 'good' and one for each kind of defect in it."
        raise FileNotFoundError(msg)
    folders = data_folders(test)
    kinds = [kind for kind in folders if (kind / part).is_dir()]
    if kinds:
        _report(test, [kind for kind in folders if kind not in kinds], "folders", f"have no {part} and are not used")
    warn_without_good(test, kinds)
    return kinds


def _cloud_path(sample: CloudSample) -> Path:
    return file_named(sample.folder / "xyz", sample.name, CLOUD_SUFFIXES)


def _label(kind: Path) -> LabelName:
    return LabelName.NORMAL if is_good(kind.name) else LabelName.ABNORMAL


def _require_samples(samples: list[CloudSample], folder: Path, expected: str) -> list[CloudSample]:
    if not samples:
        msg = f"There are no clouds in {folder}: expected {folder / 'test'}/<kind>/{expected}."
        raise FileNotFoundError(msg)
    return samples


def _write_cache(path: Path, cloud: RenderedCloud) -> None:
    """Write a rendered cloud, with flags packed to bits; concurrent readers find the whole file or none."""
    arrays: dict[str, Any] = {}
    for field in fields(cloud):
        value = getattr(cloud, field.name)
        if value is None:
            continue
        array = value.numpy() if isinstance(value, Tensor) else np.array(value)
        arrays[field.name] = np.packbits(array) if array.dtype == bool else array
        arrays[f"{field.name}.shape"] = np.array(array.shape, np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)


def _read_cache(path: Path) -> RenderedCloud:
    flags = {"valid", "organized", *_RENAMED_FIELDS, "gt_mask", "view_masks", "visible"}
    values: dict[str, Tensor | None] = {field.name: None for field in fields(RenderedCloud)}
    advice = "remove it, and the cloud is rendered again"
    with parsing(path, "a cached rendering", advice), np.load(path, allow_pickle=False) as arrays:
        for name in [name for name in arrays.files if not name.endswith(".shape")]:
            shape = tuple(arrays[f"{name}.shape"])
            array = arrays[name]
            if name in flags:
                array = np.unpackbits(array, count=math.prod(shape)).astype(bool)
            values[_RENAMED_FIELDS.get(name, name)] = torch.from_numpy(array.reshape(shape))
    organized = bool(values.pop("organized"))
    return RenderedCloud(organized=organized, **values)  # type: ignore[arg-type]
