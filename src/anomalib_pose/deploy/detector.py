# SPDX-License-Identifier: Apache-2.0
"""A feed-forward detector of one object: retrieval, unrolled alignment, reference, comparison."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.compare import Comparator, SurfaceStatistics
from anomalib_pose.compare.query_content import CONTENT_CELLS, has_contrast, white_where
from anomalib_pose.deploy.graph.alignment import align, build_level, unproject
from anomalib_pose.deploy.graph.gaussian_rasterizer import GaussianRasterizerGraph
from anomalib_pose.deploy.graph.relighting import relight_reference
from anomalib_pose.deploy.graph.rendered_bank import RenderedBank
from anomalib_pose.deploy.graph.resample import frame_matrix, resize_pinhole, softening_matrix, window_matrix
from anomalib_pose.deploy.graph.view_corrections import ViewCorrections
from anomalib_pose.deploy.graph.view_synthesis import GraphRendering, synthesize_views
from anomalib_pose.deploy.graph.window import Window
from anomalib_pose.deploy.settings import DetectorSettings
from anomalib_pose.geometry import rigid_inverse
from anomalib_pose.progress import track

_STRIDES = {4: 1, 2: 2, 1: 2}  # by the divisor of the size: large images have more pixels than the alignment needs
_MIN_CALIBRATION_DISTANCE = 0.035  # fraction of the distance to the object; a query has no bank view closer than this


class DetectorOutput(NamedTuple):
    """Predictions for a batch of images, with anomalib's names.

    Args:
        pred_score: image scores (B,).
        anomaly_map: pixel scores (B, 1, H, W) of the whole image.
        decided: whether an image has content in the window (B,); without content it has no verdict.
    """

    pred_score: Tensor
    anomaly_map: Tensor
    decided: Tensor


class DetectorReference(NamedTuple):
    """Queries and their references, cropped to the detector's window.

    Args:
        query: windows of the images (B, 3, h, w), RGB in [0, 1].
        reference: defect-free references (B, 3, h, w); the query itself where no view supports a reference.
        alpha: opacity of the object (B, h, w).
        points: surface points of the pixels (B, h, w, 3), world frame.
        camera_to_world: estimated poses (B, 4, 4), scene units.
    """

    query: Tensor
    reference: Tensor
    alpha: Tensor
    points: Tensor
    camera_to_world: Tensor


class FeedForwardDetector(nn.Module):
    """Estimates the pose of a query and compares the query with a reference at that pose, as one static graph.

    The graph has no renderer, no optimizer and no branch that depends on the data. It crops the window that holds the
    object out of the query and retrieves the most similar views of the bank. A fixed number of damped Gauss-Newton
    steps aligns these views with the query; the Jacobian has a closed form, because the views have depth. At the best
    pose, the object is rasterized or the nearest views are warped there. The comparator compares this reference with
    the query.

    Args:
        bank: rendered views of the window.
        comparator: compares windows; ``calibrate`` calibrates it for this detector.
        window: part of the image that the views show.
        settings: numbers of initial views, steps and neighbors.
        rasterizer: rasterizes the object at the estimated pose; None to warp views of the bank.
        corrections: adds residuals of photographs to rasterized references; None to add nothing.
        white_background: whether the object was photographed on white. Otherwise only its silhouette is compared.
        relight: relight views and references to the light of the query.
    """

    keeps_precision = True
    """Poses and pixel coordinates need full precision in every runtime."""

    def __init__(
        self,
        bank: RenderedBank,
        comparator: Comparator,
        window: Window,
        settings: DetectorSettings,
        rasterizer: GaussianRasterizerGraph | None = None,
        corrections: ViewCorrections | None = None,
        *,
        white_background: bool,
        relight: bool = False,
    ) -> None:
        super().__init__()
        self.bank = bank
        self.rasterizer = rasterizer
        self.corrections = corrections
        self.comparator = comparator
        self.window = window
        self.starts = min(settings.starts, len(bank))
        self.neighbors = min(settings.neighbours, len(bank))
        self.steps = settings.steps
        self.white_background = white_background
        self.relight = relight
        self.surface: SurfaceStatistics | None = None
        self.bank_size: tuple[int, int] = (bank.views.shape[-2], bank.views.shape[-1])
        self.size = self.bank_size if rasterizer is None else rasterizer.size

    def crop(
        self, images: Float[Tensor, "b 3 height width"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """Crop the window out of images of any size.

        Args:
            images: RGB in [0, 1].
            size: height and width of the cropped window in pixels; None for the size that is compared.
        """
        rows, columns = self.window.matrices(window_matrix, images.shape[-2:], size or self.size, images)
        return rows @ images @ columns.transpose(0, 1)

    def estimate_poses(self, query: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 4 4"], Float[Tensor, " b"]]:
        """Estimate the poses of queries.

        Args:
            query: windows of the bank's size, RGB in [0, 1].

        Returns:
            Camera-to-world poses in units of the bank's depth, and the alignment costs at these poses.
        """
        index = self.bank.nearest(query, self.starts)
        motion = torch.eye(4).to(query).expand(index.numel(), 4, 4).unflatten(0, (-1, self.starts))
        motion, cost = self._align(query, index, motion, 4, self.steps[0])
        # finer sizes cost more: the best two candidates go on to the half size, the best one to the full size
        for divisor, steps, survivors in ((2, self.steps[1], min(2, self.starts)), (1, self.steps[2], 1)):
            best = cost.topk(survivors, dim=1, largest=False).indices
            index = index.gather(1, best)
            motion = motion.gather(1, best[:, :, None, None].expand(-1, -1, 4, 4))
            motion, cost = self._align(query, index, motion, divisor, steps)
        return self.bank.pose(index[:, 0]) @ rigid_inverse(motion[:, 0]), cost[:, 0]

    def _align(
        self, query: Tensor, index: Tensor, motion: Tensor, divisor: int, steps: int
    ) -> tuple[Float[Tensor, "b s 4 4"], Float[Tensor, "b s"]]:
        """Align S candidate views of each query at one size; return motions and costs."""
        flat = index.flatten()
        level = build_level(
            query,
            self.bank.view(flat),
            self.bank.pinhole(flat),
            motion.flatten(0, 1),
            divisor,
            _STRIDES[divisor],
            starts=index.shape[1],
            silhouettes_only=not self.white_background,
            relight=self.relight,
        )
        motion, cost = align(level, motion.flatten(0, 1), steps)
        return motion.unflatten(0, (-1, index.shape[1])), cost.unflatten(0, (-1, index.shape[1]))

    def reference(self, images: Float[Tensor, "b 3 height width"], min_distance: float = 0.0) -> DetectorReference:
        """Estimate the poses of images and make their references.

        The object is rasterized at the pose, or the views near the pose are warped there with their depth. A
        surface that is hidden in one view comes from the other views. Where no view supports a pixel, the reference is
        the query itself, so that nothing is compared there. Views are sharper than an image of lower resolution, so the
        reference is resampled to the softness of the image.

        Args:
            images: RGB in [0, 1], of any size.
            min_distance: leave out views nearer to the pose than this, in units of the bank's depth.
        """
        query = self.crop(images)
        pose, _ = self.estimate_poses(query if self.size == self.bank_size else self.crop(images, self.bank_size))
        near = self.bank.nearest_cameras(pose, self.neighbors, min_distance)
        pinhole = resize_pinhole(self.bank.pinhole(near[:, 0]), self.bank_size, self.size)
        rendering = self._render(pose, pinhole, near)
        rows, columns = self.window.matrices(softening_matrix, images.shape[-2:], self.size, images)
        reference = rows @ rendering.rgb @ columns.transpose(0, 1)
        support = rendering.support if self.white_background else rendering.support * rendering.alpha
        reference = query + support[:, None] * (reference - query)
        surface = unproject(rendering.depth, pinhole).flatten(2)
        points = self.bank.unit * (pose[:, :3, :3] @ surface + pose[:, :3, 3:]).unflatten(2, self.size)
        points = points.permute(0, 2, 3, 1)
        if self.relight:
            reference = relight_reference(query, reference, rendering.alpha, points)
        to_scene = torch.ones(4, 4).to(pose)
        to_scene[:3, 3] = self.bank.unit
        return DetectorReference(query, reference, rendering.alpha, points, pose * to_scene)

    def _render(self, pose: Tensor, pinhole: Tensor, near: Tensor) -> GraphRendering:
        """Rasterize the object from cameras, or synthesize it from the views nearest to them."""
        if self.rasterizer is not None:
            rendering = self.rasterizer(pose, pinhole, near)
            if self.corrections is None:
                return rendering
            return rendering._replace(rgb=self.corrections(rendering, pose, pinhole))
        flat = near.flatten()
        inverse_motion = rigid_inverse(self.bank.pose(flat)) @ pose.repeat_interleave(self.neighbors, 0)
        view, pinhole = self.bank.view(flat), self.bank.pinhole(flat)
        return synthesize_views(view, rigid_inverse(inverse_motion), inverse_motion, pinhole, self.neighbors)

    @torch.no_grad()
    def calibrate(self, images: Float[Tensor, "n 3 height width"], surface: SurfaceStatistics | None = None) -> None:
        """Calibrate the comparator on the residuals of normal views and this detector's references.

        Args:
            images: normal views that the scene was not fitted to.
            surface: the model's residual statistics on the object's surface; None to treat all surface points alike.
                They come from more views than were held out from the fit. They compare surface points with each other
                and have no absolute scale, so they also hold for this detector's references.
        """
        # The bank may hold a view at the exact pose of an image. A query never has such a view.
        references = [
            self.reference(image[None], _MIN_CALIBRATION_DISTANCE) for image in track(images, "Calibrate the detector")
        ]
        query, reference, alpha = (torch.cat(parts) for parts in list(zip(*references, strict=True))[:3])
        self.comparator.fit_windows(query, reference, alpha)
        self.surface = surface

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> DetectorOutput:
        """Compute scores and maps of images of any size.

        Args:
            images: RGB in [0, 1].
        """
        decided = has_contrast(self.crop(images, (CONTENT_CELLS, CONTENT_CELLS)))
        query, reference, alpha, points, _ = self.reference(white_where(~decided, images))
        window_map = self.comparator.compare_windows(query, reference, alpha)
        if self.surface is not None:
            window_map = self.surface.relative(window_map, points, alpha)
        score = self.comparator.score(window_map, alpha)
        rows, columns = self.window.matrices(frame_matrix, images.shape[-2:], self.size, images)
        return DetectorOutput(score, (rows @ window_map @ columns.transpose(0, 1))[:, None], decided)
