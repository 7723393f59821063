# SPDX-License-Identifier: Apache-2.0
"""Writer of a small rendered data set in the layout of raw MVTec 3D-AD."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
import torch
from rich.progress import Progress

from anomalib_pose.data.files import new_category, write_image
from anomalib_pose.geometry import Camera, look_at
from anomalib_pose.render.mesh import rasterize_mesh, resolve
from anomalib_pose.render.mesh_lighting import Light, bake_light, shade
from anomalib_pose.sample_data.solids import DEFECTS, SOLIDS, build_solid
from anomalib_pose.sample_data.views import single_torch_thread

logger = logging.getLogger(__name__)

_DISTANCE, _FIELD_OF_VIEW = 0.36, 0.36
_DEPTH_NOISE = 8e-5
_MIN_COSINE = 0.12  # between ray and normal; the sensor measures no points below it
_DROPOUT = 0.003  # probability that a point is missing
_MIN_SIZE = 64


def write_clouds(
    out: str | Path,
    categories: Sequence[str] = tuple(SOLIDS),
    seed: int = 0,
    size: int = 200,
    *,
    train: int = 4,
    test_good: int = 5,
    test_per_defect: int = 3,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write clouds of solids on a table, recorded by a simulated depth camera above the table.

    Each category has ``train/good`` and ``validation/good`` with ``rgb`` and ``xyz``, and ``test/<kind>`` with ``rgb``,
    ``xyz`` and ``gt``. Defects are bumps, dents, holes, and contamination, which changes only the color. Points are
    missing at random and at grazing angles. Equal arguments give equal files.

    Args:
        out: folder of the data set; created if it does not exist.
        categories: names of the solids: ring, dome, peg.
        seed: seed of solids, defects and noise.
        size: width and height of clouds and images in cells.
        train: number of clouds in ``train/good``; ``validation/good`` has as many, at most two.
        test_good: number of test clouds without defect.
        test_per_defect: number of test clouds of each of the four kinds of defect.
        overwrite: replace existing categories.
        progress: show a progress bar.

    Returns:
        Folder of the data set.

    Raises:
        FileExistsError: if a category exists and ``overwrite`` is False.
        ValueError: if a number is out of its range, or a category is not one of the solids.
    """
    unknown = sorted(set(categories) - set(SOLIDS))
    if unknown or not categories:
        msg = f"categories should be one or more of {', '.join(SOLIDS)}, got {', '.join(unknown) or 'none'}."
        raise ValueError(msg)
    if size < _MIN_SIZE or min(train, test_good, test_per_defect) < 0:
        msg = (
            f"size should be {_MIN_SIZE} or more and numbers of clouds 0 or more, got size {size}, train {train}, "
            f"test_good {test_good} and test_per_defect {test_per_defect}."
        )
        raise ValueError(msg)
    parts = {"train/good": train, "validation/good": min(train, 2), "test/good": test_good}
    parts |= {f"test/{kind}": test_per_defect for kind in DEFECTS}
    with single_torch_thread(), Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("Rendering clouds", total=len(categories) * sum(parts.values()))
        for category in categories:
            with new_category(Path(out), category, overwrite=overwrite) as folder:
                for number, (part, count) in enumerate(parts.items()):
                    for index in range(count):
                        rng = np.random.default_rng([seed, list(SOLIDS).index(category), number, index])
                        _write_recording(folder / part, f"{index:03}", category, size, rng)
                        bar.advance(task)
    total = len(categories) * sum(parts.values())
    logger.info("Wrote %d clouds of %s to %s.", total, ", ".join(categories), out)
    return Path(out)


def _write_recording(folder: Path, name: str, category: str, size: int, rng: np.random.Generator) -> None:
    """Render one solid, and write its color image, its cloud and, for test clouds, its mask."""
    kind = folder.name
    solid = build_solid(category, kind, rng)
    camera = _camera(size, rng)
    fragments = rasterize_mesh(solid.mesh, camera, 3)
    light = Light()
    albedo = fragments.interpolate(solid.mesh, solid.mesh.colors)
    image = resolve(fragments, shade(solid.mesh, fragments, albedo, camera, light, bake_light(solid.mesh, light)))
    center = fragments[(fragments.index // (3 * size) % 3 == 1) & (fragments.index % 3 == 1)]
    surface = center.interpolate(
        solid.mesh, torch.cat([solid.mesh.vertices, solid.mesh.normals, solid.defect[:, None]], 1)
    )
    position, normal, defect = surface.double().numpy()[:, :3], surface.double().numpy()[:, 3:6], surface.numpy()[:, 6]
    xyz, gt = np.zeros((size * size, 3), np.float32), np.zeros(size * size, np.uint8)
    viewmat = torch.linalg.inv(camera.camera_to_world.double()).numpy()
    view_ray = position - camera.camera_to_world[:3, 3].double().numpy()
    cosine = np.abs((view_ray * normal).sum(1)) / np.linalg.norm(view_ray, axis=1)
    in_camera = position @ viewmat[:3, :3].T + viewmat[:3, 3]
    in_camera *= 1 + rng.normal(0, _DEPTH_NOISE, len(position))[:, None] / in_camera[:, 2:]
    measured = (cosine > _MIN_COSINE * np.linalg.norm(normal, axis=1)) & (rng.random(len(position)) > _DROPOUT)
    xyz[center.pixel[measured]] = in_camera[measured]
    gt[center.pixel] = np.where(defect > 0.5, 255, 0)
    (folder / "xyz").mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "xyz" / f"{name}.tiff", xyz.reshape(size, size, 3))
    write_image(folder / "rgb" / f"{name}.png", (image.rgb.numpy() * 255).round().astype(np.uint8))
    if folder.parent.name == "test":
        write_image(folder / "gt" / f"{name}.png", gt.reshape(size, size))


def _camera(size: int, rng: np.random.Generator) -> Camera:
    """Place the depth camera almost above the solid."""
    tilt = rng.uniform(-0.15, 0.15, 2)
    direction = np.array([tilt[0], tilt[1] - 0.25, 1.0])
    eye = torch.from_numpy(_DISTANCE * direction / np.linalg.norm(direction)).float()
    pose = look_at(eye, torch.tensor([0.0, 0.0, 0.008]), torch.tensor([0.0, 1.0, 0.0]))
    return Camera.from_fov(pose, _FIELD_OF_VIEW, size, size)
