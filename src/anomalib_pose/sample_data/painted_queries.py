# SPDX-License-Identifier: Apache-2.0
"""Queries made of a posed object's own photographs: held out, with and without painted defects."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from anomalib_pose.data.files import new_category, write_image, write_json
from anomalib_pose.data.images import over_white, read_image, read_mask
from anomalib_pose.data.posed.transforms_json import PosedFrame, read_json, read_transforms
from anomalib_pose.sample_data.defects import to_bytes
from anomalib_pose.sample_data.painted import PAINTED_DEFECTS, DefectSizes, paint_defect

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Photograph:
    """One posed photograph: its name without suffix, unique in the source, its frame and its entry in the file."""

    name: str
    frame: PosedFrame
    entry: dict[str, Any]


def write_painted_queries(
    source: str | Path,
    out: str | Path,
    every: int = 8,
    seed: int = 0,
    *,
    per_image: int = 1,
    white: bool = False,
    sizes: DefectSizes | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Hold photographs of a posed object out and paint defects onto copies of them.

    ``PosedFolder(out, query_dir="queries", mask_dir="ground_truth")`` reads what is written: ``transforms.json`` with
    the photographs that were not held out in ``train`` and masks of the object in ``masks``; the held-out ones as they
    are in ``queries/good``, and with a defect each in ``queries/stain``, ``queries/missing`` and ``queries/scratch``;
    the defects' masks in ``ground_truth``. The queries' true poses go to ``_hidden/<name>.json`` beside the folder.
    Equal arguments give equal files.

    Args:
        source: folder with ``transforms.json`` and a mask of the object for every photograph, as a file or as alpha.
        out: folder to be written.
        every: every n-th photograph of the file, from the first, is held out.
        seed: chooses place, shape and color of the defects.
        per_image: defects of each kind that each held-out photograph is painted with, one a copy.
        white: paint white what the masks leave out, in all photographs.
        sizes: of the defects; None for the defaults.
        overwrite: replace a folder that exists.
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder exists and is not to be overwritten.
        FileNotFoundError: if there is no ``transforms.json``, or a file that it names does not exist.
        ValueError: if a number is out of its range, a photograph has no mask of the object, no photograph is left to
            train on, or no place was found for a defect.
    """
    if every < 2 or per_image < 1:
        msg = f"every should be 2 or more and per_image 1 or more, got {every} and {per_image}."
        raise ValueError(msg)
    path, folder = Path(source) / "transforms.json", Path(out)
    photographs = _photographs(path)
    if len(photographs) < 2:
        msg = f"{path} has one photograph: holding it out leaves none to train on."
        raise ValueError(msg)
    held_out = photographs[::every]
    with (
        new_category(folder.parent, folder.name, overwrite=overwrite) as partial,
        Progress(disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task(f"Painting {folder.name}", total=len(photographs))
        entries = []
        for index, photograph in enumerate(photographs):
            if index % every:
                entries.append(_write_training(photograph, partial, white=white))
                bar.advance(task)
        write_json(partial / "transforms.json", {**read_json(path), "frames": entries})
        images = []
        for index, photograph in enumerate(held_out):
            images += _write_queries(photograph, partial, (seed, index), per_image, sizes, white=white)
            bar.advance(task)
    hidden = {"category": folder.name, "seed": seed, "images": images}
    write_json(folder.parent / "_hidden" / f"{folder.name}.json", hidden)
    logger.info("Wrote %d training views and %d queries to %s.", len(entries), len(images), folder)
    return folder


def _photographs(path: Path) -> list[_Photograph]:
    """Every photograph of the file."""
    frames, entries = read_transforms(path), read_json(path)["frames"]
    stems = [frame.image_path.stem for frame in frames]
    names = stems if len(set(stems)) == len(stems) else [f"{stem}_{index}" for index, stem in enumerate(stems)]
    return [_Photograph(*each) for each in zip(names, frames, entries, strict=True)]


def _read(frame: PosedFrame, *, white: bool) -> tuple[np.ndarray, np.ndarray]:
    """Photograph (H, W, 3) and mask of the object (H, W), both uint8."""
    image, foreground = read_image(frame.image_path)
    if frame.mask_path is not None:
        mask = read_mask(frame.mask_path)
        foreground = mask if foreground is None else mask * foreground
    if foreground is None:
        msg = (
            f"{frame.image_path} has no mask of the object, so nobody knows where a defect may be: expected "
            "'mask_path' in its frame of transforms.json, or transparency."
        )
        raise ValueError(msg)
    if white:
        image = over_white(image, foreground)
    return to_bytes(image.permute(1, 2, 0)), to_bytes(foreground)


def _write_training(photograph: _Photograph, folder: Path, *, white: bool) -> dict[str, Any]:
    """Write a training view; returns its entry of ``transforms.json``."""
    path = photograph.frame.image_path
    image, foreground = _read(photograph.frame, white=white)
    file, mask_file = f"train/{photograph.name}{'.png' if white else path.suffix}", f"masks/{photograph.name}.png"
    if white:
        write_image(folder / file, image)
    else:
        (folder / "train").mkdir(exist_ok=True)
        shutil.copyfile(path, folder / file)
    write_image(folder / mask_file, foreground)
    return {**photograph.entry, "file_path": file, "mask_path": mask_file}


def _write_queries(
    photograph: _Photograph,
    folder: Path,
    seed: tuple[int, int],
    per_image: int,
    sizes: DefectSizes | None,
    *,
    white: bool,
) -> list[dict[str, Any]]:
    """Write a held-out photograph with and without defects; returns what is known about the queries."""
    image, foreground = _read(photograph.frame, white=white)
    pose = photograph.entry["transform_matrix"]

    def known(kind: str, file: str, area: int) -> dict[str, Any]:
        return {"file": file, "transform_matrix": pose, "kind": kind, "area_px": area}

    file = f"queries/good/{photograph.name}.png"
    write_image(folder / file, image)
    found = [known("good", file, 0)]
    for number, kind in enumerate(PAINTED_DEFECTS):
        for copy in range(per_image):
            rng = np.random.default_rng([*seed, number, copy])
            spoiled, mask = paint_defect(image, foreground > 127, kind, rng, sizes)
            name = photograph.name if per_image == 1 else f"{photograph.name}_{copy}"
            file = f"queries/{kind}/{name}.png"
            write_image(folder / file, spoiled)
            write_image(folder / "ground_truth" / kind / f"{name}_mask.png", mask.astype(np.uint8) * 255)
            found.append(known(kind, file, int(mask.sum())))
    return found
