# SPDX-License-Identifier: Apache-2.0
"""A small data set in BrokenChairs' layout, drawn from nothing."""

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
    Change,
    Pose,
    find_change,
    photograph,
    published_mesh,
    random_light,
    random_materials,
)
from anomalib_pose.sample_data.reference_writer import camera_matrices, write_reference_view
from anomalib_pose.sample_data.views import one_thread

logger = logging.getLogger(__name__)

_TEST_SHARE, _VAL_SHARE = 0.25, 0.1
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
    """Write chairs, photographed whole and broken, in the layout of BrokenChairs-180K.

    Every chair is another design with reference views of its own; every photograph has its own pose, light and
    colors. Every other photograph shows a broken chair; the five kinds take turns. A quarter of the shapes is for
    testing, a tenth for validation. Equal arguments give equal files.

    Args:
        out: folder of the data set, which must not exist.
        shapes: number of chairs, 3 or more.
        queries: photographs of each.
        seed: chooses everything that is random.
        size: side of the photographs in pixels. Boxes are for 512 pixels, whatever it is.
        views: reference views of each chair.
        overwrite: replace a folder that exists.
        progress: show a progress bar.

    Returns:
        Folder of the data set.

    Raises:
        FileExistsError: if the folder exists and is not to be overwritten.
        ValueError: if a number is out of its range.
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
        one_thread(),
        Progress(disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task(f"Drawing {target.name}", total=shapes * (queries + views))
        for number in range(shapes):
            model = _Model(number, seed, size)
            for view in render_reference_views(published_mesh(model.chair), views, seed=seed):
                write_reference_view(folder / "shapes" / f"shape_{number}" / "mv_images", str(number), view)
                bar.advance(task)
            write_text(folder / "shapes" / f"shape_{number}" / "model_id.txt", f"procedural_{seed}_{number}\n")
            for query in range(queries):
                index = number * queries + query
                kind = ANOMALY_TYPES[index // 2 % len(ANOMALY_TYPES)] if index % 2 else None
                _write_query(folder, model, query, kind)
                bar.advance(task)
        write_json(folder / "split.json", _splits(shapes))
    logger.info("Wrote %d photographs of %d chairs to %s.", shapes * queries, shapes, target)
    return target


@dataclass
class _Model:
    """One chair, what is drawn of it, and a chair to take parts from.

    Args:
        number: of the chair.
        seed: of the data set.
        size: side of the photographs in pixels.
        chair: the chair, made here.
        other: the other chair, made here.
        baked: the light on the chair, by the light's number.
    """

    number: int
    seed: int
    size: int
    chair: Chair = field(init=False)
    other: Chair = field(init=False)
    baked: dict[int, BakedLight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chair = build_chair(np.random.default_rng([self.seed, 0, self.number]))
        self.other = build_chair(np.random.default_rng([self.seed, 1, self.number]))

    def light(self, number: int) -> Light:
        """One of the lights, which all chairs of the data set share."""
        return random_light(np.random.default_rng([self.seed, 2, number]))

    def anomalies(self, kind: str, rng: np.random.Generator) -> Iterator[tuple[Pose, Anomaly, Change]]:
        """Broken chairs in poses that show it."""
        for _ in range(_TRIES):
            anomaly = break_chair(self.chair, kind, self.other, rng)
            pose = Pose.random(rng, self.size)
            change = None if anomaly is None else find_change(self.chair, anomaly, pose.chair_camera)
            if anomaly is not None and change is not None:
                yield pose, anomaly, change


def _write_query(folder: Path, model: _Model, number: int, kind: str | None) -> None:
    """Write a photograph, and annotation and masks if it shows a broken chair."""
    rng = np.random.default_rng([model.seed, 3, model.number, number])
    light = int(rng.integers(LIGHTS))
    materials = random_materials(rng)
    if kind is None:
        pose, change, chair = Pose.random(rng, model.size), None, model.chair
        if light not in model.baked:
            model.baked[light] = bake_light(chair.mesh, model.light(light))
        baked = model.baked[light]
    else:
        found = next(model.anomalies(kind, rng), None)
        if found is None and kind == "swapped":
            # the other chair has no part of a role that shows; another one may
            model.other = build_chair(rng)
            found = next(model.anomalies(kind, rng), None)
        if found is None:
            msg = f"No place for an anomaly of the kind {kind} was found on chair {model.number}; use another seed."
            raise ValueError(msg)
        pose, anomaly, change = found
        chair = anomaly.chair
        baked = bake_light(chair.mesh, model.light(light))
    label = "normal" if kind is None else f"anomaly_{kind}"
    stem = f"{model.number}_{number}_{pose.radius}_{pose.azimuth}_{pose.elevation}_{light}_{label}"
    image = photograph(chair, materials, pose.chair_camera, model.light(light), baked)
    write_image(folder / "images" / str(model.number) / f"render_{stem}.png", image)
    if kind is not None and change is not None:
        notes = folder / "annotations" / str(model.number)
        write_json(notes / f"info_{stem}.json", _annotation(pose, change, kind, number, model.size))
        for which, mask in (("new", change.new), ("old", change.old)):
            if mask is not None:
                write_image(notes / f"mask_{which}_{stem}.png", mask.astype(np.uint8) * 255)


def _annotation(pose: Pose, change: Change, kind: str, texture: int, size: int) -> dict[str, Any]:
    return {
        "2d_bbox": [side * BOX_UNIT / size for side in change.box],
        "IoU": change.overlap,
        "camera": camera_matrices(pose.camera),
        "texture_id": texture,
        "config": {"type": ANOMALY_TYPES.index(kind) + 1},
    }


def _splits(shapes: int) -> dict[str, list[str]]:
    test, val = (max(1, round(shapes * share)) for share in (_TEST_SHARE, _VAL_SHARE))
    names = [str(number) for number in range(shapes)]
    train = shapes - test - val
    return {"train": names[:train], "val": names[train : train + val], "test": names[train + val :]}
