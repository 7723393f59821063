# SPDX-License-Identifier: Apache-2.0
"""File lists of BrokenChairs, in the layouts of its current and its first release."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from anomalib_pose.data.files import read_json
from anomalib_pose.data.listing import SUFFIXES, data_folders, image_files

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
BOX_UNIT = 512
"""Side of the image, in pixels, to which stored boxes refer."""
ANOMALY_TYPES = ("position", "rotation", "missing", "damaged", "swapped")
"""Names of the first release's types 1 to 5."""
GOOD, UNNAMED = "good", "anomaly"
"""Kinds of good queries, and of anomalous queries whose type the files do not name."""


@dataclass(frozen=True)
class QuerySample:
    """One query image with its label and files.

    Args:
        image_path: the image.
        shape_id: name of the shape that the query shows, with or without a defect.
        kind: ``good``, or the type of the anomaly; ``anomaly`` where the files do not name the type.
        reference_dir: folder of the shape's reference views.
        annotation_path: JSON of the anomaly, None for good images.
        mask_paths: existing masks of the anomalous part, in its defective and in its defect-free state.
    """

    image_path: Path
    shape_id: str
    kind: str
    reference_dir: Path
    annotation_path: Path | None = None
    mask_paths: tuple[Path, ...] = ()


def find_queries(root: Path) -> list[QuerySample]:
    """List all queries of a data set.

    Args:
        root: folder with ``images``, ``annotations`` and ``shapes`` (the release), or with ``normals`` and
            ``anomalies`` (the first release).

    Raises:
        FileNotFoundError: if the folders, images, annotations of anomalies, or views of a shape are missing.
        ValueError: if an image's name does not contain a shape.
    """
    if (root / "images").is_dir():
        queries = list(_find_in_release(root))
    elif (root / "normals").is_dir():
        queries = list(_find_in_first_release(root))
    else:
        msg = (
            f"{root} should have the folders images, annotations and shapes (the release of BrokenChairs), or normals "
            "and anomalies (the first release): unpack the data set there."
        )
        raise FileNotFoundError(msg)
    if not queries:
        msg = f"There are no query images in {root}: unpack the data set there."
        raise FileNotFoundError(msg)
    unannotated = [query for query in queries if query.kind != GOOD and query.annotation_path is None]
    if unannotated:
        msg = (
            f"{len(unannotated)} anomalous images have no annotation, the first is {unannotated[0].image_path}: add "
            "the annotations, or remove the images."
        )
        raise FileNotFoundError(msg)
    _report_without_masks([query for query in queries if query.kind != GOOD])
    missing = [folder for folder in sorted({query.reference_dir for query in queries}) if not folder.is_dir()]
    if missing:
        msg = (
            f"{len(missing)} shapes have no reference views, the first should be in {missing[0]}: unpack the shapes, "
            "or render the views with anomalib-pose render-views."
        )
        raise FileNotFoundError(msg)
    return queries


def _report_without_masks(anomalous: list[QuerySample]) -> None:
    """Log the anomalous images without a mask."""
    unmasked = [query.image_path for query in anomalous if not query.mask_paths]
    if unmasked:
        logger.warning(
            "%d of %d anomalous images have no mask mask_new_...png or mask_old_...png, so there are no metrics of "
            "pixels: the first is %s.", len(unmasked), len(anomalous), unmasked[0],
        )  # fmt: skip


def split_queries(root: Path, queries: list[QuerySample]) -> dict[str, list[QuerySample]]:
    """Assign queries to the splits to which ``split.json`` assigns their shapes.

    If the file has no list for training (the first release), shapes that it does not name belong to training. If it
    has one, queries of such shapes are left out, and their number is logged.

    Raises:
        FileNotFoundError: if there is no ``split.json``.
        ValueError: if the file has no lists of shapes, or a shape is in two splits.
    """
    path = root / "split.json"
    content = read_json(path)
    lists = {name: content.get(name, []) for name in SPLITS}
    if not all(isinstance(names, list) for names in lists.values()) or not lists["test"]:
        msg = f"{path} should have lists of shape ids, 'train', 'val' and 'test', found keys {sorted(content)}."
        raise ValueError(msg)
    split_of: dict[str, str] = {}
    for name, shapes in lists.items():
        for shape in map(str, shapes):
            if split_of.setdefault(shape, name) != name:
                msg = f"{path} has shape {shape!r} in {split_of[shape]} and in {name}: a shape belongs to one split."
                raise ValueError(msg)
    default_split = "train" if not lists["train"] else None
    splits: dict[str, list[QuerySample]] = {name: [] for name in SPLITS}
    left_out = 0
    for query in queries:
        split = split_of.get(query.shape_id, default_split)
        if split is None:
            left_out += 1
        else:
            splits[split].append(query)
    if left_out:
        logger.warning("%d images are left out: %s does not name their shapes.", left_out, path)
    return splits


def count_summary(queries: list[QuerySample]) -> str:
    """Return a text with the numbers of good images, of anomalous images by type, and of shapes."""
    kinds = Counter(query.kind for query in queries)
    anomalies = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()) if kind != GOOD)
    shapes = len({query.shape_id for query in queries})
    anomalous = len(queries) - kinds[GOOD]
    return (
        f"{len(queries)} images ({kinds[GOOD]} good, {anomalous} anomalous: {anomalies or 'none'}) of {shapes} shapes"
    )


@dataclass(frozen=True)
class _Annotations:
    """Index of a folder of annotations; one JSON and two masks can belong to an image."""

    folder: Path
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def in_folder(cls, folder: Path) -> "_Annotations":
        return cls(folder, {path.name.lower(): path.name for path in folder.iterdir()} if folder.is_dir() else {})

    def first_existing(self, *candidates: str) -> Path | None:
        names = (self.names.get(name.lower()) for name in candidates)
        return next((self.folder / name for name in names if name), None)

    def sample(self, image: Path, shape_id: str, kind: str, reference_dir: Path) -> QuerySample:
        if kind == GOOD:
            return QuerySample(image, shape_id, kind, reference_dir)
        suffix = image.stem.removeprefix("render_")
        masks = (
            self.first_existing(*(f"mask_{state}_{suffix}{ending}" for ending in SUFFIXES)) for state in ("new", "old")
        )
        annotation = self.first_existing(f"info_{suffix}.json", f"{image.stem}.json")
        return QuerySample(image, shape_id, kind, reference_dir, annotation, tuple(mask for mask in masks if mask))


def _find_in_release(root: Path) -> Iterator[QuerySample]:
    for folder in data_folders(root / "images"):
        annotations = _Annotations.in_folder(root / "annotations" / folder.name)
        for image in image_files(folder):
            tokens = image.stem.split("_")
            if len(tokens) < 2 or not tokens[1]:
                msg = f"An image of BrokenChairs is named render_<shape>_...png, found {image}."
                raise ValueError(msg)
            shape_id = tokens[1]
            kind = GOOD
            if "anomaly" in image.stem.lower():
                kind = re.split("anomaly", image.stem, maxsplit=1, flags=re.IGNORECASE)[1].strip("_") or UNNAMED
            yield annotations.sample(image, shape_id, kind, root / "shapes" / f"shape_{shape_id}" / "mv_images")


def _find_in_first_release(root: Path) -> Iterator[QuerySample]:
    for folder in data_folders(root / "normals"):
        for image in image_files(folder / "renders"):
            yield QuerySample(image, folder.name, GOOD, folder / "rendered_mesh")
    for folder in data_folders(root / "anomalies"):
        shape_id, _, kind = folder.name.removeprefix("A").partition("_")
        if not folder.name.startswith("A") or not shape_id:
            msg = f"A folder of anomalies is named A<shape>_<type>, found {folder}."
            raise ValueError(msg)
        if kind in {str(number + 1) for number in range(len(ANOMALY_TYPES))}:
            kind = ANOMALY_TYPES[int(kind) - 1]
        annotations = _Annotations.in_folder(folder / "annotation")
        for image in image_files(folder / "renders"):
            reference_dir = root / "normals" / shape_id / "rendered_mesh"
            yield annotations.sample(image, shape_id, kind or UNNAMED, reference_dir)
