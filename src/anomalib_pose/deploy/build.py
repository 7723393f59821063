# SPDX-License-Identifier: Apache-2.0
"""A feed-forward detector made of a fitted scene."""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.compare import Comparator
from anomalib_pose.deploy.detector import FeedForwardDetector
from anomalib_pose.deploy.graph.gaussian_rasterizer import GaussianDrawing, seen_gaussians
from anomalib_pose.deploy.graph.rendered_bank import RenderedBank, spread_poses
from anomalib_pose.deploy.graph.resample import window_matrix
from anomalib_pose.deploy.graph.view_corrections import ViewCorrections, corrections_megabytes
from anomalib_pose.deploy.graph.window import Window
from anomalib_pose.deploy.settings import DetectorSettings, check_size
from anomalib_pose.geometry import Camera
from anomalib_pose.scene import GaussianScene, NearbyViews, Scene, scene_rasterizer

logger = logging.getLogger(__name__)

_SMALL = 64
_SHOWN = (0.0995, 0.1005)  # opacity at which a cell begins to count as object, and counts in full
_MARGIN = 0.08
_TOGETHER = 256  # views whose neighbors are looked for at once
_MEASURED = 32  # views by which the room for Gaussians is measured


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
    """Render the bank of a fitted scene and put a detector around it, not yet calibrated.

    Args:
        scene: the fitted object.
        poses: cameras that queries may be near, camera-to-world.
        camera: intrinsics and size of a query; its pose is not used.
        comparator: kept by the detector.
        settings: size of the detector.
        white_background: see ``FeedForwardDetector``.
        nearby: photographs that correct what is drawn, if anything is.
        relight: see ``FeedForwardDetector``.
        progress: show a bar.

    Raises:
        ValueError: if the bank would be larger than the settings allow, before anything is rendered.
    """
    window = find_window(scene, poses, camera)
    drawn = drawn_scene(scene, settings)
    size, compared_size = settings.sizes(drawn=drawn is not None)
    height, width = window.pixels(camera, size)
    compared = window.camera(camera, *window.pixels(camera, compared_size))
    scale = float((compared.K.diagonal() / camera.K.diagonal())[:2].mean())
    count, sh_degree = (0, 0) if drawn is None else (len(drawn), drawn.sh_degree)
    photographs = nearby if drawn is not None and settings.photographs else None
    extra = 0.0 if photographs is None else corrections_megabytes(photographs, scale, settings.photographs)
    megabytes = check_size(settings, height, width, count, sh_degree, extra)
    chosen = spread_poses(poses, scene.center.to(poses), settings.views)
    logger.info("%d views of %d x %d px, %d Gaussians: %.0f MB.", len(chosen), height, width, count, megabytes)
    rows, columns = window.along_axes(window_matrix, (camera.height, camera.width), (height, width), chosen)
    bank = RenderedBank.render(
        scene,
        chosen,
        camera,
        window.camera(camera, height, width).K,
        rows,
        columns.T,
        silhouettes_only=not white_background,
        progress=progress,
    )
    drawing, corrections = None, None
    if drawn is not None:
        drawing = _drawing(drawn, bank, compared.with_pose(chosen), settings, scale, progress)
    if photographs is not None:
        corrections = ViewCorrections.of(photographs, bank.unit, scale, settings.photographs)
    return FeedForwardDetector(
        bank, comparator, window, settings, drawing, corrections, white_background=white_background, relight=relight
    ).eval()


def drawn_scene(scene: Scene, settings: DetectorSettings) -> GaussianScene | None:
    """The scene if a detector draws its Gaussians, None if it warps views of the bank.

    Args:
        scene: the fitted object.
        settings: of the detector.
    """
    return scene if isinstance(scene, GaussianScene) and settings.drawn else None


def _drawing(
    scene: GaussianScene,
    bank: RenderedBank,
    cameras: Camera,
    settings: DetectorSettings,
    scale: float,
    progress: bool,
) -> GaussianDrawing:
    """Draws those of a scene's Gaussians that views of the bank see."""
    gaussians, device = scene.activated(), cameras.K.device
    rasterizer = scene_rasterizer(scene.rasterizer_name, device)
    seen = seen_gaussians(gaussians, rasterizer, cameras, progress=progress)
    kept = seen.any(0)
    every = torch.arange(len(bank))
    # in parts: a table of all distances at once takes hundreds of megabytes
    around = torch.cat([bank.around(bank.pose(part), settings.neighbours) for part in every.split(_TOGETHER)])
    some = every[:: max(1, len(bank) // _MEASURED)]
    intrinsics = cameras.K[some][:, [0, 1, 0, 1], [0, 1, 2, 2]].cpu()
    drawing = GaussianDrawing.measured(
        gaussians[kept.to(device)].to("cpu"),
        bank.unit,
        seen[:, kept],
        (cameras.height, cameras.width),
        (bank.pose(some), intrinsics, around[some]),
        around,
        scale,
        settings.oversampling,
    )
    logger.info("Draws %d Gaussians; room for %s.", int(kept.sum()), drawing.room)
    return drawing


def find_window(scene: Scene, poses: Float[Tensor, "v 4 4"], camera: Camera) -> Window:
    """Window that holds the object in all views, with a margin.

    Args:
        scene: the fitted object.
        poses: of the views.
        camera: intrinsics and size of the images.
    """
    scale = _SMALL / max(camera.width, camera.height)
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

    A cell counts in part while its opacity rises through ``_SHOWN``. The extent then changes continuously with the
    opacity, and rounding cannot move it by a whole cell.

    Args:
        alpha: largest opacity in each cell along the axis.
    """
    coverage = ((alpha - _SHOWN[0]) / (_SHOWN[1] - _SHOWN[0])).clamp(0, 1)
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
