# SPDX-License-Identifier: Apache-2.0
"""Writer of a small rendered data set in BrokenChairs' layout."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from anomalib_pose.data.files import new_category, write_image, write_json, write_text
from anomalib_pose.data.reference_views.broken_chairs_files import ANOMALY_TYPES, BOX_UNIT
from anomalib_pose.render.mesh_lighting import BakedLight, Light, bake_light
from anomalib_pose.render.reference_views import render_reference_views
from anomalib_pose.sample_data.chair_anomalies import Anomaly, break_chair
from anomalib_pose.sample_data.chair_parts import Chair, build_chair
from anomalib_pose.sample_data.chair_views import (
    LIGHTS,
    AnomalyMasks,
    QueryPose,
    anomaly_masks,
    published_mesh,
    random_light,
    random_materials,
    render_query,
)
from anomalib_pose.sample_data.reference_writer import camera_matrices, write_reference_view
from anomalib_pose.sample_data.views import single_torch_thread

logger = logging.getLogger(__name__)

_TEST_FRACTION, _VAL_FRACTION = 0.25, 0.1
_TRIES = 200


def write_chairs(
    out: str | Path,
    shapes: int = 12,
    queries: int = 10,
    seed: int = 0,
    *,
    size: int = 512,
    views: int = 20,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write queries of whole and broken chairs, with reference views, in the layout of BrokenChairs-180K.

    Each chair has its own design and its own reference views. Each query has its own pose, light and colors. Every
    second query shows a broken chair; the five kinds of anomaly take turns. A quarter of the shapes is for testing, a
    tenth for validation. Equal arguments give equal files.

    Args:
        out: folder of the data set, which must not exist.
        shapes: number of chairs, 3 or more.
        queries: number of queries of each chair.
        seed: seed of all random choices.
        size: side of the queries in pixels. Boxes always refer to a side of 512 pixels.
        views: number of reference views of each chair.
        overwrite: replace an existing folder.
        progress: show a progress bar.

    Returns:
        Folder of the data set.

    Raises:
        FileExistsError: if the folder exists and ``overwrite`` is False.
        ValueError: if a number is out of its range, or no place for an anomaly was found.
    """
    if shapes < 3 or queries < 1 or size < 64 or views < 1:
        msg = (
            "shapes has to be 3 or more, queries 1 or more, size 64 or more and views 1 or more, "
            f"got {shapes}, {queries}, {size} and {views}."
        )
        raise ValueError(msg)
    target = Path(out).resolve()
    with (
        new_category(target.parent, target.name, overwrite=overwrite) as folder,
        single_torch_thread(),
        Progress(disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task(f"Rendering {target.name}", total=shapes * (queries + views))
        for shape_number in range(shapes):
            shape = _ChairShape(shape_number, seed, size)
            for view in render_reference_views(published_mesh(shape.chair), views, seed=seed):
                write_reference_view(folder / "shapes" / f"shape_{shape_number}" / "mv_images", str(shape_number), view)
                bar.advance(task)
            write_text(
                folder / "shapes" / f"shape_{shape_number}" / "model_id.txt", f"procedural_{seed}_{shape_number}\n"
            )
            for query_number in range(queries):
                index = shape_number * queries + query_number
                kind = ANOMALY_TYPES[index // 2 % len(ANOMALY_TYPES)] if index % 2 else None
                _write_query(folder, shape, query_number, kind)
                bar.advance(task)
        write_json(folder / "split.json", _splits(shapes))
    logger.info("Wrote %d queries of %d chairs to %s.", shapes * queries, shapes, target)
    return target


@dataclass
class _ChairShape:
    """One chair shape of the data set, and a donor chair for swapped parts.

    Args:
        number: number of the shape.
        seed: seed of the data set.
        size: side of the queries in pixels.
        chair: chair without anomaly, built on construction.
        donor: chair that swapped parts come from, built on construction.
        baked: baked light on the chair, by the light's number.
    """

    number: int
    seed: int
    size: int
    chair: Chair = field(init=False)
    donor: Chair = field(init=False)
    baked: dict[int, BakedLight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chair = build_chair(np.random.default_rng([self.seed, 0, self.number]))
        self.donor = build_chair(np.random.default_rng([self.seed, 1, self.number]))

    def light(self, number: int) -> Light:
        """Return a light by its number; all chairs of the data set share the lights."""
        return random_light(np.random.default_rng([self.seed, 2, number]))

    def anomalies(self, kind: str, rng: np.random.Generator) -> Iterator[tuple[QueryPose, Anomaly, AnomalyMasks]]:
        """Generate broken chairs in poses that show the anomaly."""
        for _ in range(_TRIES):
            anomaly = break_chair(self.chair, kind, self.donor, rng)
            pose = QueryPose.random(rng, self.size)
            masks = None if anomaly is None else anomaly_masks(self.chair, anomaly, pose.chair_camera)
            if anomaly is not None and masks is not None:
                yield pose, anomaly, masks


def _write_query(folder: Path, shape: _ChairShape, number: int, kind: str | None) -> None:
    """Write a query, and its annotation and masks if it shows a broken chair."""
    rng = np.random.default_rng([shape.seed, 3, shape.number, number])
    light = int(rng.integers(LIGHTS))
    materials = random_materials(rng)
    if kind is None:
        pose, masks, chair = QueryPose.random(rng, shape.size), None, shape.chair
        if light not in shape.baked:
            shape.baked[light] = bake_light(chair.mesh, shape.light(light))
        baked = shape.baked[light]
    else:
        candidate = next(shape.anomalies(kind, rng), None)
        if candidate is None and kind == "swapped":
            # This donor has no visible part with a role that the chair has; another donor may have one.
            shape.donor = build_chair(rng)
            candidate = next(shape.anomalies(kind, rng), None)
        if candidate is None:
            msg = f"No place for an anomaly of kind {kind} was found on chair {shape.number}: use another seed."
            raise ValueError(msg)
        pose, anomaly, masks = candidate
        chair = anomaly.chair
        baked = bake_light(chair.mesh, shape.light(light))
    label = "normal" if kind is None else f"anomaly_{kind}"
    stem = f"{shape.number}_{number}_{pose.radius}_{pose.azimuth}_{pose.elevation}_{light}_{label}"
    image = render_query(chair, materials, pose.chair_camera, shape.light(light), baked)
    write_image(folder / "images" / str(shape.number) / f"render_{stem}.png", image)
    if kind is not None and masks is not None:
        annotations = folder / "annotations" / str(shape.number)
        write_json(annotations / f"info_{stem}.json", _annotation(pose, masks, kind, number, shape.size))
        for mask_name, mask in (("new", masks.new), ("old", masks.old)):
            if mask is not None:
                write_image(annotations / f"mask_{mask_name}_{stem}.png", mask.astype(np.uint8) * 255)


def _annotation(pose: QueryPose, masks: AnomalyMasks, kind: str, texture: int, size: int) -> dict[str, Any]:
    """Build the content of an annotation file."""
    return {
        "2d_bbox": [side * BOX_UNIT / size for side in masks.box],
        "IoU": masks.overlap,
        "camera": camera_matrices(pose.camera),
        "texture_id": texture,
        "config": {"type": ANOMALY_TYPES.index(kind) + 1},
    }


def _splits(shapes: int) -> dict[str, list[str]]:
    """Assign the shapes to the splits train, val and test."""
    test, val = (max(1, round(shapes * fraction)) for fraction in (_TEST_FRACTION, _VAL_FRACTION))
    names = [str(number) for number in range(shapes)]
    train = shapes - test - val
    return {"train": names[:train], "val": names[train : train + val], "test": names[train + val :]}
