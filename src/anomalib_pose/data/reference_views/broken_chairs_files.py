# SPDX-License-Identifier: Apache-2.0
"""Which files BrokenChairs has, in the layout of its release and in that of the first one."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from anomalib_pose.data.images import image_files
from anomalib_pose.data.posed.transforms_json import read_json

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
BOX_UNIT = 512
"""Boxes are in pixels of an image of this side."""
ANOMALY_TYPES = ("position", "rotation", "missing", "damaged", "swapped")
"""Names of the first release's types 1 to 5."""
GOOD, UNNAMED = "good", "anomaly"


@dataclass(frozen=True)
class QueryFile:
    """One query image.

    Args:
        image_path: the image.
        shape_id: name of the shape it should show.
        kind: ``good``, or the type of the anomaly; ``anomaly`` where the files do not name it.
        references: folder of the shape's reference views.
        annotation_path: JSON of the anomaly, None for good images.
        mask_paths: masks of the changed part, in the image and as it should be; those that exist.
    """

    image_path: Path
    shape_id: str
    kind: str
    references: Path
    annotation_path: Path | None = None
    mask_paths: tuple[Path, ...] = ()


def find_queries(root: Path) -> list[QueryFile]:
    """All queries of a data set.

    Args:
        root: has ``images``, ``annotations`` and ``shapes`` (the release), or ``normals`` and ``anomalies`` (the first
            release).

    Raises:
        FileNotFoundError: if the folders, images, annotations of anomalies, or views of a shape are missing.
        ValueError: if an image's name has no shape.
    """
    if (root / "images").is_dir():
        queries = list(_release(root))
    elif (root / "normals").is_dir():
        queries = list(_first_release(root))
    else:
        msg = (
            f"{root} should have the folders images, annotations and shapes (the release of BrokenChairs), or normals "
            "and anomalies (the first release): unpack the data set there."
        )
        raise FileNotFoundError(msg)
    if not queries:
        msg = f"There are no query images in {root}: unpack the data set there."
        raise FileNotFoundError(msg)
    bare = [query for query in queries if query.kind != GOOD and query.annotation_path is None]
    if bare:
        msg = (
            f"{len(bare)} anomalous images have no annotation, the first is {bare[0].image_path}: add the annotations, "
            "or remove the images."
        )
        raise FileNotFoundError(msg)
    without = [folder for folder in sorted({query.references for query in queries}) if not folder.is_dir()]
    if without:
        msg = (
            f"{len(without)} shapes have no reference views, the first should be in {without[0]}: unpack the shapes, "
            "or draw the views with anomalib-pose render-views."
        )
        raise FileNotFoundError(msg)
    return queries


def split_queries(root: Path, queries: list[QueryFile]) -> dict[str, list[QueryFile]]:
    """Queries of each split, by their shapes, as ``split.json`` has it.

    Shapes that it does not name belong to training where it has no list for training (the first release), and to
    nothing else; how many images that leaves out is logged.

    Raises:
        FileNotFoundError: if there is no ``split.json``.
        ValueError: if it is no table of lists, or a shape is in two splits.
    """
    path = root / "split.json"
    content = read_json(path)
    lists = {name: content.get(name, []) for name in SPLITS}
    if not all(isinstance(names, list) for names in lists.values()) or not lists["test"]:
        msg = f"{path} should have lists of shape ids, 'train', 'val' and 'test', found keys {sorted(content)}."
        raise ValueError(msg)
    home: dict[str, str] = {}
    for name, shapes in lists.items():
        for shape in map(str, shapes):
            if home.setdefault(shape, name) != name:
                msg = f"{path} has shape {shape!r} in {home[shape]} and in {name}: a shape belongs to one split."
                raise ValueError(msg)
    rest = "train" if not lists["train"] else None
    parts: dict[str, list[QueryFile]] = {name: [] for name in SPLITS}
    left_out = 0
    for query in queries:
        part = home.get(query.shape_id, rest)
        if part is None:
            left_out += 1
        else:
            parts[part].append(query)
    if left_out:
        logger.warning("%d images are left out: %s does not name their shapes.", left_out, path)
    return parts


def summary(queries: list[QueryFile]) -> str:
    """Counts of images, good and anomalous by type, and of shapes."""
    kinds = Counter(query.kind for query in queries)
    anomalies = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()) if kind != GOOD)
    shapes = len({query.shape_id for query in queries})
    bad = len(queries) - kinds[GOOD]
    return f"{len(queries)} images ({kinds[GOOD]} good, {bad} anomalous: {anomalies or 'none'}) of {shapes} shapes"


@dataclass(frozen=True)
class _Annotations:
    """Files of a folder of annotations, of which one JSON and two masks can belong to an image."""

    folder: Path
    names: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path) -> "_Annotations":
        return cls(folder, {path.name for path in folder.iterdir()} if folder.is_dir() else set())

    def path(self, *candidates: str) -> Path | None:
        return next((self.folder / name for name in candidates if name in self.names), None)

    def query(self, image: Path, shape_id: str, kind: str, references: Path) -> QueryFile:
        if kind == GOOD:
            return QueryFile(image, shape_id, kind, references)
        rest = image.stem.removeprefix("render_")
        masks = (self.path(f"mask_{which}_{rest}.png") for which in ("new", "old"))
        annotation = self.path(f"info_{rest}.json", f"{image.stem}.json")
        return QueryFile(image, shape_id, kind, references, annotation, tuple(mask for mask in masks if mask))


def _release(root: Path) -> Iterator[QueryFile]:
    for folder in sorted(path for path in (root / "images").iterdir() if path.is_dir()):
        annotations = _Annotations.of(root / "annotations" / folder.name)
        for image in image_files(folder):
            tokens = image.stem.split("_")
            if len(tokens) < 2 or not tokens[1]:
                msg = f"An image of BrokenChairs is named render_<shape>_...png, found {image}."
                raise ValueError(msg)
            shape_id = tokens[1]
            kind = GOOD
            if "anomaly" in image.stem:
                kind = image.stem.partition("anomaly")[2].strip("_") or UNNAMED
            yield annotations.query(image, shape_id, kind, root / "shapes" / f"shape_{shape_id}" / "mv_images")


def _first_release(root: Path) -> Iterator[QueryFile]:
    for folder in _folders(root / "normals"):
        for image in _images(folder):
            yield QueryFile(image, folder.name, GOOD, folder / "rendered_mesh")
    for folder in _folders(root / "anomalies"):
        shape_id, _, kind = folder.name.removeprefix("A").partition("_")
        if not folder.name.startswith("A") or not shape_id:
            msg = f"A folder of anomalies is named A<shape>_<type>, found {folder}."
            raise ValueError(msg)
        if kind in {str(number + 1) for number in range(len(ANOMALY_TYPES))}:
            kind = ANOMALY_TYPES[int(kind) - 1]
        annotations = _Annotations.of(folder / "annotation")
        for image in _images(folder):
            references = root / "normals" / shape_id / "rendered_mesh"
            yield annotations.query(image, shape_id, kind or UNNAMED, references)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _images(folder: Path) -> list[Path]:
    renders = folder / "renders"
    return image_files(renders) if renders.is_dir() else []
