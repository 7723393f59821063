# SPDX-License-Identifier: Apache-2.0
"""Writer of the reference views of a mesh in Looking3D's layout."""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress

from anomalib_pose.compare.query_content import has_content
from anomalib_pose.data.files import new_category, opengl_matrix, write_image, write_json
from anomalib_pose.geometry import Camera, rigid_inverse
from anomalib_pose.render.mesh import Mesh
from anomalib_pose.render.reference_views import ReferenceView, render_reference_views
from anomalib_pose.sample_data.views import single_torch_thread

logger = logging.getLogger(__name__)


def write_reference_views(
    mesh: Mesh,
    out: str | Path,
    name: str,
    *,
    views: int = 20,
    elevation: float = math.radians(20),
    distance: float = 3.0,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Render a mesh's reference views into a folder; equal arguments give equal files.

    Args:
        mesh: mesh in about [-1, 1], y up.
        out: folder of the views, which must not exist.
        name: id in the files' names.
        views: number of views at evenly spaced azimuths from 0 to below 360 degrees.
        elevation: elevation of the cameras, radians.
        distance: distance of the cameras from the origin.
        seed: seed of the points of the correspondences.
        overwrite: replace an existing folder.
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder exists and ``overwrite`` is False.
        ValueError: if a number is out of its range, the mesh has no area, or the name is not a plain file name.
    """
    if not name or name != Path(name).name:
        msg = f"The id of reference views should be a plain file name, got {name!r}."
        raise ValueError(msg)
    target = Path(out).resolve()
    rendered_views = render_reference_views(mesh, views, elevation, distance, seed)
    with (
        new_category(target.parent, target.name, overwrite=overwrite) as folder,
        single_torch_thread(),
        Progress(disable=not progress, transient=True) as bar,
    ):
        for view in bar.track(rendered_views, total=views, description=f"Rendering {name}"):
            if not bool(has_content(view.gray.float()[None, None])):
                msg = f"A view from the distance {distance:g} shows nothing of {name}: choose a smaller distance."
                raise ValueError(msg)
            write_reference_view(folder, name, view)
    logger.info("Wrote %d reference views of %s to %s.", views, name, target)
    return target


def write_reference_view(folder: Path, name: str, view: ReferenceView) -> None:
    """Write the four files of one view.

    Args:
        folder: folder of the views.
        name: id in the files' names.
        view: view to write.
    """
    degrees = [f"{round(math.degrees(angle), 3):g}" for angle in (view.azimuth, view.elevation)]
    stem = "_".join([name, str(float(view.distance)), *degrees])
    gray = (view.gray * 255).round().byte().numpy()
    write_image(folder / f"{stem}.png", np.repeat(gray[..., None], 3, 2))
    write_json(folder / f"{stem}.json", camera_matrices(view.camera))
    np.save(folder / f"{stem}_depth.npy", view.depth.numpy().astype(np.float32))
    table = {"pxy": view.pixels.numpy(), "is_visible": view.visible.numpy(), "xyz": view.xyz.numpy()}
    # A pickled dictionary, as in the published files. This package's reader accepts arrays only, and runs no code.
    np.save(folder / f"{stem}.npy", np.array(table, dtype=object), allow_pickle=True)


def camera_matrices(camera: Camera) -> dict[str, list[list[float]]]:
    """Return a camera in the data set's form: ``K`` in pixels, ``RT`` world to camera, ``RT_`` back, OpenGL axes."""
    camera_to_world = opengl_matrix(camera.camera_to_world)
    world_to_camera = rigid_inverse(torch.tensor(camera_to_world, dtype=torch.float64))
    return {"K": camera.K.tolist(), "RT": world_to_camera.tolist(), "RT_": camera_to_world}
