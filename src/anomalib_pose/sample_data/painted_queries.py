# SPDX-License-Identifier: Apache-2.0
"""Writer of queries from held-out photographs of a posed object, with and without painted defects."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from anomalib_pose.data.files import check_source_stays, new_category, read_json, write_image, write_json
from anomalib_pose.data.images import over_white, read_image
from anomalib_pose.data.masks import read_object_mask
from anomalib_pose.data.posed.transforms_json import PosedFrame, read_transforms_entries
from anomalib_pose.data.posed.transforms_split import SPLIT_LISTS, find_transforms
from anomalib_pose.sample_data.defects import to_bytes
from anomalib_pose.sample_data.painted import PAINTED_DEFECTS, DefectSizes, paint_defect

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Photograph:
    """One posed photograph: unique name without suffix, frame, and entry of ``transforms.json``."""

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
    """Hold out photographs of a posed object, and paint defects onto copies of them.

    ``PosedFolder(out, query_dir="queries", mask_dir="ground_truth")`` reads the written folder:

    - ``transforms.json``, ``train`` and ``masks``: the other photographs, and their masks of the object.
    - ``queries/good``: the held-out photographs without changes.
    - ``queries/stain``, ``queries/missing`` and ``queries/scratch``: the held-out photographs with one defect each.
    - ``ground_truth``: the masks of the defects.

    The true poses of the queries are in ``_hidden/<name>.json`` beside the folder. Equal arguments give equal files.

    Args:
        source: folder with ``transforms.json`` and a mask of the object for each photograph, as a file or as alpha.
        out: folder to write.
        every: interval of held-out photographs in ``transforms.json``, starting at the first photograph.
        seed: seed of place, shape and color of the defects.
        per_image: number of copies with a defect of each kind that each held-out photograph gets.
        white: paint all photographs white outside the masks.
        sizes: sizes of the defects; None for the defaults.
        overwrite: replace an existing folder.
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder exists and ``overwrite`` is False.
        FileNotFoundError: if ``transforms.json``, or a file that it names, does not exist.
        ValueError: if a number is out of its range, a photograph has no mask of the object, no photograph is left for
            training, or no place for a defect was found.
    """
    if every < 2 or per_image < 1:
        msg = f"every should be 2 or more and per_image 1 or more, got {every} and {per_image}."
        raise ValueError(msg)
    path, folder = find_transforms(Path(source)) or Path(source) / "transforms.json", Path(out)
    check_source_stays(path, folder)
    photographs = _read_photographs(path)
    if len(photographs) < 2:
        msg = f"{path} should have two photographs or more, got {len(photographs)}: none would be left for training."
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
        shared = {key: value for key, value in read_json(path).items() if key not in SPLIT_LISTS}
        write_json(partial / "transforms.json", {**shared, "frames": entries})
        images = []
        for index, photograph in enumerate(held_out):
            images += _write_queries(photograph, partial, (seed, index), per_image, sizes, white=white)
            bar.advance(task)
    hidden = {"category": folder.name, "seed": seed, "images": images}
    write_json(folder.parent / "_hidden" / f"{folder.name}.json", hidden)
    logger.info("Wrote %d training views and %d queries to %s.", len(entries), len(images), folder)
    return folder


def _read_photographs(path: Path) -> list[_Photograph]:
    """List the photographs of ``transforms.json``."""
    frames, entries = zip(*read_transforms_entries(path), strict=True)
    stems = [frame.image_path.stem for frame in frames]
    names = stems if len(set(stems)) == len(stems) else [f"{stem}_{index}" for index, stem in enumerate(stems)]
    return [_Photograph(*fields) for fields in zip(names, frames, entries, strict=True)]


def _read_image_and_mask(frame: PosedFrame, *, white: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read a photograph (H, W, 3) and its mask of the object (H, W), both uint8."""
    image, foreground = read_image(frame.image_path)
    if frame.mask_path is not None:
        mask = read_object_mask(frame.mask_path)
        foreground = mask if foreground is None else mask * foreground
    if foreground is None:
        msg = (
            f"{frame.image_path} has no mask of the object, so the place of a defect is undefined: expected "
            "'mask_path' in its frame of transforms.json, or transparency."
        )
        raise ValueError(msg)
    if white:
        image = over_white(image, foreground)
    return to_bytes(image.permute(1, 2, 0)), to_bytes(foreground)


def _write_training(photograph: _Photograph, folder: Path, *, white: bool) -> dict[str, Any]:
    """Write a training view; return its entry of ``transforms.json``."""
    path = photograph.frame.image_path
    image, foreground = _read_image_and_mask(photograph.frame, white=white)
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
    """Write a held-out photograph with and without defects; return the ground truth of these queries."""
    image, foreground = _read_image_and_mask(photograph.frame, white=white)
    pose = photograph.entry["transform_matrix"]

    def ground_truth(kind: str, file: str, area: int) -> dict[str, Any]:
        return {"file": file, "transform_matrix": pose, "kind": kind, "area_px": area}

    file = f"queries/good/{photograph.name}.png"
    write_image(folder / file, image)
    truths = [ground_truth("good", file, 0)]
    for number, kind in enumerate(PAINTED_DEFECTS):
        for copy in range(per_image):
            rng = np.random.default_rng([*seed, number, copy])
            defective, mask = paint_defect(image, foreground > 127, kind, rng, sizes)
            name = photograph.name if per_image == 1 else f"{photograph.name}_{copy}"
            file = f"queries/{kind}/{name}.png"
            write_image(folder / file, defective)
            write_image(folder / "ground_truth" / kind / f"{name}_mask.png", mask.astype(np.uint8) * 255)
            truths.append(ground_truth(kind, file, int(mask.sum())))
    return truths
