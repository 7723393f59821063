# SPDX-License-Identifier: Apache-2.0
"""Where rendered clouds come from: raw recordings that are drawn in memory, or renderings on disk."""

import hashlib
import math
import os
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from anomalib.data.utils import LabelName
from torch import Tensor

from anomalib_pose.data.images import image_files, read_image, read_mask
from anomalib_pose.data.point_cloud.files import naming, read_xyz
from anomalib_pose.data.point_cloud.preprocessing import isolate_object
from anomalib_pose.data.point_cloud.rendered_cloud import RenderedCloud, RenderSettings, front_view, render_organized
from anomalib_pose.data.point_cloud.rendered_layout import VIEWS, read_rendered, view_files

_CACHE_VERSION = 1
"""Raise it when the same recording and settings give other renderings."""
_RENAMED_FIELDS = {"organised": "organized"}
"""Field names in caches of version 0.1, with their present names."""


@dataclass(frozen=True)
class CloudSample:
    """One recording.

    Args:
        folder: of its kind, as ``<category>/test/good``.
        name: of its files, without suffix.
        category: name of the kind of object.
        label: normal or abnormal.
        image_path: photograph, or the picture of a view.
        mask_path: mask of the defect, or None.
    """

    folder: Path
    name: str
    category: str
    label: LabelName
    image_path: Path
    mask_path: Path | None


class CloudSource(Protocol):
    """Reads recordings of one layout."""

    def samples(self, folder: Path) -> list[CloudSample]:
        """Recordings of the test part of a category's folder."""

    def load(self, sample: CloudSample) -> RenderedCloud:
        """The cloud of a recording, with its views."""


@dataclass(frozen=True)
class RawSource:
    """MVTec 3D-AD as it is published: ``test/<kind>`` with ``xyz``, ``rgb`` and ``gt``; drawn when it is read.

    Args:
        settings: how clouds are drawn.
        seed: makes the search for the plane repeatable.
        cache: folder that keeps drawn clouds; None to draw them each time.
    """

    settings: RenderSettings
    seed: int = 0
    cache: Path | None = None

    def samples(self, folder: Path) -> list[CloudSample]:
        """Recordings of the test part of a category's folder.

        Raises:
            FileNotFoundError: if a folder, photograph or mask is missing, or there is no cloud.
        """
        found = []
        for kind in _kinds(folder, "xyz"):
            photographs = {path.stem: path for path in _images(kind / "rgb")}
            masks = {path.stem: path for path in _images(kind / "gt")}
            label = _label(kind)
            for cloud in sorted((kind / "xyz").glob("*.tiff")):
                if cloud.stem not in photographs:
                    msg = f"The cloud {cloud} has no photograph: expected {kind / 'rgb' / cloud.stem}.png."
                    raise FileNotFoundError(msg)
                if label == LabelName.ABNORMAL and cloud.stem not in masks:
                    msg = f"The cloud {cloud} has no mask: expected {kind / 'gt' / cloud.stem}.png."
                    raise FileNotFoundError(msg)
                image, mask = photographs[cloud.stem], masks.get(cloud.stem)
                found.append(CloudSample(kind, cloud.stem, folder.name, label, image, mask))
        return _some(found, folder, "xyz/<name>.tiff")

    def load(self, sample: CloudSample) -> RenderedCloud:
        """The cloud of a recording, drawn now or read from the cache.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file cannot be read, sizes differ, or nothing but the plane is there.
        """
        kept = None if self.cache is None else self.cache / f"{self._key(sample)}.npz"
        if kept is not None and kept.is_file():
            return _read_cached(kept)
        xyz, rgb, gt_mask = self.original(sample)
        with naming(_cloud_path(sample)):
            cloud = render_organized(xyz, self.settings, gt_mask, rgb)
        if kept is not None:
            _write_cached(kept, cloud)
        return cloud

    def original(self, sample: CloudSample) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The object's cloud (H, W, 3), photograph (3, H, W) and mask (H, W), before they are brought to the grid.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file cannot be read, sizes differ, or nothing but the plane is there.
        """
        path = _cloud_path(sample)
        xyz = read_xyz(path)
        rgb, _ = read_image(sample.image_path)
        gt_mask = None if sample.mask_path is None else read_mask(sample.mask_path)
        for other, channels in ((sample.image_path, rgb), (sample.mask_path, gt_mask)):
            if channels is not None and channels.shape[-2:] != xyz.shape[:2]:
                msg = (
                    f"{other} is {channels.shape[-1]} x {channels.shape[-2]}, but its cloud {path} is "
                    f"{xyz.shape[1]} x {xyz.shape[0]}: both should have one size."
                )
                raise ValueError(msg)
        with naming(path):
            return isolate_object(xyz, rgb, gt_mask, self.seed)

    def _key(self, sample: CloudSample) -> str:
        paths = [_cloud_path(sample), sample.image_path, sample.mask_path]
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path]
        content = repr((_CACHE_VERSION, stats, sorted(asdict(self.settings).items()), self.seed))
        return hashlib.sha256(content.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class RenderedSource:
    """Renderings on disk in either published layout.

    Args:
        size: width and height of the views.
    """

    size: int = 336

    def samples(self, folder: Path) -> list[CloudSample]:
        """Rendered recordings of the test part of a category's folder.

        Raises:
            FileNotFoundError: if a folder, or every rendering, is missing.
        """
        found = []
        for kind in _kinds(folder, VIEWS):
            photographs = {path.stem: path for path in _images(kind / "rgb")}
            masks = {path.stem: path for path in _images(kind / "gt")}
            for views in sorted(path for path in (kind / VIEWS).iterdir() if path.is_dir()):
                pictures = view_files(views)
                image = photographs.get(views.name, pictures[front_view(len(pictures))])
                found.append(CloudSample(kind, views.name, folder.name, _label(kind), image, masks.get(views.name)))
        return _some(found, folder, f"{VIEWS}/<name>")

    def load(self, sample: CloudSample) -> RenderedCloud:
        """The rendered cloud; see ``read_rendered`` for what it raises."""
        return read_rendered(sample.folder, sample.name, self.size)


def is_rendered(folder: Path) -> bool:
    """Whether the test part of a category's folder has renderings."""
    return any((folder / "test").glob(f"*/{VIEWS}"))


def _kinds(folder: Path, part: str) -> list[Path]:
    test = folder / "test"
    if not test.is_dir():
        msg = f"There is no folder {test}: expected subfolders 'good' and one for each kind of defect in it."
        raise FileNotFoundError(msg)
    return [kind for kind in sorted(test.iterdir()) if (kind / part).is_dir()]


def _cloud_path(sample: CloudSample) -> Path:
    return sample.folder / "xyz" / f"{sample.name}.tiff"


def _label(kind: Path) -> LabelName:
    return LabelName.NORMAL if kind.name == "good" else LabelName.ABNORMAL


def _images(folder: Path) -> list[Path]:
    return image_files(folder) if folder.is_dir() else []


def _some(found: list[CloudSample], folder: Path, expected: str) -> list[CloudSample]:
    if not found:
        msg = f"There are no clouds in {folder}: expected {folder / 'test'}/<kind>/{expected}."
        raise FileNotFoundError(msg)
    return found


def _write_cached(path: Path, cloud: RenderedCloud) -> None:
    """Keep a drawn cloud, flags as bits; readers never see a part of it."""
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


def _read_cached(path: Path) -> RenderedCloud:
    flags = {"valid", "organized", *_RENAMED_FIELDS, "gt_mask", "view_masks", "visible"}
    values: dict[str, Tensor | None] = {field.name: None for field in fields(RenderedCloud)}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in [name for name in arrays.files if not name.endswith(".shape")]:
                shape = tuple(arrays[f"{name}.shape"])
                array = arrays[name]
                if name in flags:
                    array = np.unpackbits(array, count=math.prod(shape)).astype(bool)
                values[_RENAMED_FIELDS.get(name, name)] = torch.from_numpy(array.reshape(shape))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        msg = f"The kept rendering {path} cannot be read ({error}): remove it, and it will be drawn again."
        raise ValueError(msg) from error
    organized = bool(values.pop("organized"))
    return RenderedCloud(organized=organized, **values)  # type: ignore[arg-type]
