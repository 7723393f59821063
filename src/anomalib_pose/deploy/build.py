# SPDX-License-Identifier: Apache-2.0
"""Construction of a feed-forward detector from a fitted scene."""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.compare import Comparator
from anomalib_pose.deploy.detector import FeedForwardDetector
from anomalib_pose.deploy.graph.gaussian_rasterizer import GaussianRasterizerGraph, find_visible_gaussians
from anomalib_pose.deploy.graph.rendered_bank import RenderedBank, spread_poses
from anomalib_pose.deploy.graph.resample import window_matrix
from anomalib_pose.deploy.graph.view_corrections import ViewCorrections, corrections_megabytes
from anomalib_pose.deploy.graph.window import Window
from anomalib_pose.deploy.settings import DetectorSettings, check_size
from anomalib_pose.geometry import Camera
from anomalib_pose.progress import stage
from anomalib_pose.scene import GaussianScene, NearbyViews, Scene, scene_rasterizer

logger = logging.getLogger(__name__)

_WINDOW_SEARCH_SIZE = 64  # longer side in pixels of the renderings in which the window is searched
_OBJECT_ALPHA = (0.0995, 0.1005)  # opacities at which a cell begins to count as object, and at which it counts in full
_MARGIN = 0.08
_NEIGHBOR_BATCH = 256  # views whose neighbors are searched at once
_CAPACITY_VIEWS = 32  # views that measure the tile capacity


@torch.no_grad()
def build_detector(
    scene: Scene,
    poses: Float[Tensor, "v 4 4"],
    camera: Camera,
    comparator: Comparator,
    settings: DetectorSettings,
    *,
    white_background: bool,
    nearby: NearbyViews | None = None,
    relight: bool = False,
    progress: bool = False,
) -> FeedForwardDetector:
    """Render the view bank of a fitted scene and build a detector with it, not yet calibrated.

    Args:
        scene: the fitted object.
        poses: camera-to-world poses near which queries are expected.
        camera: intrinsics and size of a query; its pose is not used.
        comparator: the detector's comparator.
        settings: size of the detector.
        white_background: see ``FeedForwardDetector``.
        nearby: photographs whose residuals correct rasterized references; not used where views are warped.
        relight: see ``FeedForwardDetector``.
        progress: show progress bars.

    Raises:
        ValueError: if the bank would be larger than the settings allow, before anything is rendered.
    """
    with stage("Find the window of the object"):
        window = find_window(scene, poses, camera)
    gaussian_scene = rasterized_scene(scene, settings)
    size, compared_size = settings.sizes(drawn=gaussian_scene is not None)
    height, width = window.pixels(camera, size)
    compared_camera = window.camera(camera, *window.pixels(camera, compared_size))
    scale = float((compared_camera.K.diagonal() / camera.K.diagonal())[:2].mean())
    gaussian_count, sh_degree = (0, 0) if gaussian_scene is None else (len(gaussian_scene), gaussian_scene.sh_degree)
    photographs = nearby if gaussian_scene is not None and settings.photographs else None
    correction_megabytes = (
        0.0 if photographs is None else corrections_megabytes(photographs, scale, settings.photographs)
    )
    megabytes = check_size(settings, height, width, gaussian_count, sh_degree, correction_megabytes)
    bank_poses = spread_poses(poses, scene.center.to(poses), settings.views)
    logger.info(
        "Building a detector with %d views of %d x %d px and %d Gaussians: %.0f MB.",
        len(bank_poses), height, width, gaussian_count, megabytes,
    )  # fmt: skip
    rows, columns = window.matrices(window_matrix, (camera.height, camera.width), (height, width), bank_poses)
    bank = RenderedBank.render(
        scene,
        bank_poses,
        camera,
        window.camera(camera, height, width).K,
        rows,
        columns.T,
        silhouettes_only=not white_background,
        progress=progress,
    )
    rasterizer, corrections = None, None
    if gaussian_scene is not None:
        cameras = compared_camera.with_pose(bank_poses)
        rasterizer = _build_rasterizer(gaussian_scene, bank, cameras, settings, scale, progress)
    if photographs is not None:
        corrections = ViewCorrections.from_nearby(photographs, bank.unit, scale, settings.photographs)
    return FeedForwardDetector(
        bank, comparator, window, settings, rasterizer, corrections, white_background=white_background, relight=relight
    ).eval()


def rasterized_scene(scene: Scene, settings: DetectorSettings) -> GaussianScene | None:
    """Return the scene if a detector rasterizes its Gaussians, None if the detector warps views of the bank.

    Args:
        scene: the fitted object.
        settings: settings of the detector.
    """
    return scene if isinstance(scene, GaussianScene) and settings.drawn else None


def _build_rasterizer(
    scene: GaussianScene,
    bank: RenderedBank,
    cameras: Camera,
    settings: DetectorSettings,
    scale: float,
    progress: bool,
) -> GaussianRasterizerGraph:
    """Build a rasterizer of the Gaussians that views of the bank see, with a measured capacity."""
    gaussians, device = scene.activated(), cameras.K.device
    rasterizer = scene_rasterizer(scene.rasterizer_name, device)
    visible = find_visible_gaussians(gaussians, rasterizer, cameras, progress=progress)
    visible_somewhere = visible.any(0)
    indices = torch.arange(len(bank))
    # in batches: a table of all distances at once takes hundreds of megabytes
    neighborhoods = torch.cat(
        [bank.nearest_cameras(bank.pose(batch), settings.neighbours) for batch in indices.split(_NEIGHBOR_BATCH)]
    )
    measured = indices[:: max(1, len(bank) // _CAPACITY_VIEWS)]
    pinhole = cameras.K[measured][:, [0, 1, 0, 1], [0, 1, 2, 2]].cpu()
    with stage("Measure the tile capacity"):
        graph = GaussianRasterizerGraph.with_measured_capacity(
            gaussians[visible_somewhere.to(device)].to("cpu"),
            bank.unit,
            visible[:, visible_somewhere],
            (cameras.height, cameras.width),
            (bank.pose(measured), pinhole, neighborhoods[measured]),
            neighborhoods,
            scale,
            settings.oversampling,
        )
    logger.info("The detector rasterizes %d Gaussians, with %s.", int(visible_somewhere.sum()), graph.capacity)
    return graph


def find_window(scene: Scene, poses: Float[Tensor, "v 4 4"], camera: Camera) -> Window:
    """Find the window that holds the object in all views, with a margin.

    Args:
        scene: the fitted object.
        poses: camera-to-world poses of the views.
        camera: intrinsics and size of the images.

    Raises:
        ValueError: if no view shows the object.
    """
    scale = _WINDOW_SEARCH_SIZE / max(camera.width, camera.height)
    small = camera.resized(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))
    alpha = torch.zeros(small.height, small.width)
    for batch in poses.split(32):
        alpha = torch.maximum(alpha, scene.render(small.with_pose(batch)).alpha.amax(0).cpu())
    columns, rows = _extent(alpha.amax(0)), _extent(alpha.amax(1))
    if columns is None or rows is None:
        msg = "The scene shows nothing from its own views: fit the model, or load its checkpoint, before exporting."
        raise ValueError(msg)
    (left, right), (top, bottom) = columns, rows
    return Window(left, top, right - left, bottom - top)


def _extent(alpha: Float[Tensor, " n"]) -> tuple[float, float] | None:
    """Return where the object begins and ends along one axis, with a margin, as fractions of the axis.

    A cell counts in part while its opacity rises through ``_OBJECT_ALPHA``. The extent then changes continuously with
    the opacity, and rounding cannot move it by a whole cell.

    Args:
        alpha: largest opacity in each cell along the axis.
    """
    coverage = ((alpha - _OBJECT_ALPHA[0]) / (_OBJECT_ALPHA[1] - _OBJECT_ALPHA[0])).clamp(0, 1)
    if not float(coverage.amax()) > 0:
        return None
    cells = (coverage / coverage.amax()).tolist()
    start, end = len(cells) - _last_edge(cells[::-1]), _last_edge(cells)
    margin = _MARGIN * (end - start)
    return max(0.0, (start - margin) / len(cells)), min(1.0, (end + margin) / len(cells))


def _last_edge(coverage: list[float]) -> float:
    """Return the end of the last covered cell; a cell that is covered in part moves the end by this part."""
    edge = 0.0
    for cell, fraction in enumerate(coverage):
        edge += fraction * (cell + 1 - edge)
    return edge
