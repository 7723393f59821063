# SPDX-License-Identifier: Apache-2.0
"""A feed-forward detector of one object: retrieval, unrolled alignment, warp, comparison."""

import logging
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.compare import Comparator, SurfaceStatistics
from anomalib_pose.deploy.graph.alignment import align, pyramid, unproject
from anomalib_pose.deploy.graph.gaussian_rasterizer import GaussianDrawing
from anomalib_pose.deploy.graph.relighting import relit_in_windows
from anomalib_pose.deploy.graph.rendered_bank import RenderedBank
from anomalib_pose.deploy.graph.resample import frame_matrix, resized_intrinsics, softening_matrix, window_matrix
from anomalib_pose.deploy.graph.view_corrections import ViewCorrections
from anomalib_pose.deploy.graph.view_synthesis import Synthesis, synthesize
from anomalib_pose.deploy.graph.window import Window
from anomalib_pose.deploy.settings import DetectorSettings
from anomalib_pose.geometry import rigid_inverse

logger = logging.getLogger(__name__)

_STRIDES = {4: 1, 2: 2, 1: 2}  # a part of the pixels says as much where there are many
_APART = 0.035  # views nearer to a calibration view than this part of the distance are better than what queries get


class DetectorOutput(NamedTuple):
    """What the detector says of images; the names are anomalib's.

    Args:
        pred_score: image scores (B,).
        anomaly_map: pixel scores (B, 1, H, W) of the whole image.
    """

    pred_score: Tensor
    anomaly_map: Tensor


class DetectorReference(NamedTuple):
    """What queries are compared with, in the detector's window.

    Args:
        query: windows of the images (B, 3, h, w), RGB in [0, 1].
        rgb: what the bank says of them (B, 3, h, w); the query itself where it says nothing.
        alpha: opacity of the object (B, h, w).
        points: of the surface that pixels show (B, h, w, 3), world frame.
        pose: estimated camera-to-world poses (B, 4, 4), scene units.
    """

    query: Tensor
    rgb: Tensor
    alpha: Tensor
    points: Tensor
    pose: Tensor


class FeedForwardDetector(nn.Module):
    """Pose search and comparison without a renderer, an optimizer or a branch that depends on the data.

    The window that holds the object is cut out of the query. The most similar views of the bank are aligned with it by
    a fixed number of damped Gauss-Newton steps, which the views' depth gives closed-form slopes. The views nearest to
    the pose that was found are warped there, and the query is compared with what they show.

    Args:
        bank: rendered views of the window.
        comparator: compares windows; calibrated for this detector by ``calibrate``.
        window: part of the image that the views show.
        settings: numbers of starts, steps and neighbors.
        drawing: draws the object at the pose that was found; None to warp views of the bank there.
        corrections: adds to what is drawn what photographs show beyond it; None for nothing.
        white_background: whether the object was photographed on white; otherwise only its silhouette is compared.
        relight: bring views and references into the light of the query.
    """

    keeps_precision = True
    """Poses and places of pixels need their digits in every runtime."""

    def __init__(
        self,
        bank: RenderedBank,
        comparator: Comparator,
        window: Window,
        settings: DetectorSettings,
        drawing: GaussianDrawing | None = None,
        corrections: ViewCorrections | None = None,
        *,
        white_background: bool,
        relight: bool = False,
    ) -> None:
        super().__init__()
        self.bank = bank
        self.drawing = drawing
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
        self.size = self.bank_size if drawing is None else drawing.size

    def cut(
        self, images: Float[Tensor, "b 3 height width"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """The windows of images of any size.

        Args:
            images: RGB in [0, 1].
            size: height and width of the windows in pixels; None for those that are compared.
        """
        rows, columns = self.window.along_axes(window_matrix, images.shape[-2:], size or self.size, images)
        return rows @ images @ columns.transpose(0, 1)

    def locate(self, query: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 4 4"], Float[Tensor, " b"]]:
        """Camera-to-world poses of windows in units of the bank's depth, and the costs of the alignment there.

        Args:
            query: windows of the bank's size, RGB in [0, 1].
        """
        index = self.bank.nearest(query, self.starts)
        motion = torch.eye(4).to(query).expand(index.numel(), 4, 4).unflatten(0, (-1, self.starts))
        motion, cost = self._align(query, index, motion, 4, self.steps[0])
        # finer sizes cost more: two starts go on to the half, the best one to the full size
        for divisor, steps, survivors in ((2, self.steps[1], min(2, self.starts)), (1, self.steps[2], 1)):
            best = cost.topk(survivors, dim=1, largest=False).indices
            index = index.gather(1, best)
            motion = motion.gather(1, best[:, :, None, None].expand(-1, -1, 4, 4))
            motion, cost = self._align(query, index, motion, divisor, steps)
        return self.bank.pose(index[:, 0]) @ rigid_inverse(motion[:, 0]), cost[:, 0]

    def _align(
        self, query: Tensor, index: Tensor, motion: Tensor, divisor: int, steps: int
    ) -> tuple[Float[Tensor, "b s 4 4"], Float[Tensor, "b s"]]:
        """Motions and costs of S starts for each query after some steps at one size."""
        flat = index.flatten()
        level = pyramid(
            query,
            self.bank.view(flat),
            self.bank.intrinsics(flat),
            motion.flatten(0, 1),
            divisor,
            _STRIDES[divisor],
            starts=index.shape[1],
            silhouettes_only=not self.white_background,
            relight=self.relight,
        )
        motion, cost = align(level, motion.flatten(0, 1), steps)
        return motion.unflatten(0, (-1, index.shape[1])), cost.unflatten(0, (-1, index.shape[1]))

    def reference(self, images: Float[Tensor, "b 3 height width"], apart: float = 0.0) -> DetectorReference:
        """What images are compared with, at their estimated poses.

        The object is drawn there, or the views near the pose are warped there by their depth: where a view cannot see
        what the query sees, the others fill in; where none can, the query itself is put, for nothing is known to
        compare it with. An image that is smaller than the bank's views is softer than they are; what it is compared
        with is resampled likewise.

        Args:
            images: RGB in [0, 1], of any size.
            apart: leave out views nearer to the pose than this, in units of the bank's depth.
        """
        query = self.cut(images)
        pose, _ = self.locate(query if self.size == self.bank_size else self.cut(images, self.bank_size))
        near = self.bank.around(pose, self.neighbors, apart)
        intrinsics = resized_intrinsics(self.bank.intrinsics(near[:, 0]), self.bank_size, self.size)
        seen = self._seen_from(pose, intrinsics, near)
        rows, columns = self.window.along_axes(softening_matrix, images.shape[-2:], self.size, images)
        rgb = rows @ seen.rgb @ columns.transpose(0, 1)
        known = seen.known if self.white_background else seen.known * seen.alpha
        rgb = query + known[:, None] * (rgb - query)
        surface = unproject(seen.depth, intrinsics).flatten(2)
        points = self.bank.unit * (pose[:, :3, :3] @ surface + pose[:, :3, 3:]).unflatten(2, self.size)
        points = points.permute(0, 2, 3, 1)
        if self.relight:
            rgb = relit_in_windows(query, rgb, seen.alpha, points)
        to_scene = torch.ones(4, 4).to(pose)
        to_scene[:3, 3] = self.bank.unit
        return DetectorReference(query, rgb, seen.alpha, points, pose * to_scene)

    def _seen_from(self, pose: Tensor, intrinsics: Tensor, near: Tensor) -> Synthesis:
        """What cameras see of the object, drawn or put together from the views nearest to them."""
        if self.drawing is not None:
            drawn = self.drawing(pose, intrinsics, near)
            if self.corrections is None:
                return drawn
            return drawn._replace(rgb=self.corrections(drawn, pose, intrinsics))
        flat = near.flatten()
        back = rigid_inverse(self.bank.pose(flat)) @ pose.repeat_interleave(self.neighbors, 0)
        view, intrinsics = self.bank.view(flat), self.bank.intrinsics(flat)
        return synthesize(view, rigid_inverse(back), back, intrinsics, self.neighbors)

    @torch.no_grad()
    def calibrate(self, images: Float[Tensor, "n 3 height width"], surface: SurfaceStatistics | None = None) -> None:
        """Learn how good views differ from this detector's references.

        Args:
            images: good views that the scene was not fitted to.
            surface: what the model expects of each place of the object's surface; None to treat all places alike. It
                has seen more views than are left here, and says which places are worse than others, not how bad they
                are: that holds for these references too.
        """
        # The bank may hold a view from the very pose, which no query will have.
        found = [self.reference(image[None], _APART) for image in images]
        query, rgb, alpha = (torch.cat(parts) for parts in list(zip(*found, strict=True))[:3])
        self.comparator.fit_windows(query, rgb, alpha)
        self.surface = surface

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> DetectorOutput:
        """Scores and maps of images of any size.

        Args:
            images: RGB in [0, 1].
        """
        query, rgb, alpha, points, _ = self.reference(images)
        window_map = self.comparator.compare_windows(query, rgb, alpha)
        if self.surface is not None:
            window_map = self.surface.relative(window_map, points, alpha)
        score = self.comparator.score(window_map, alpha)
        rows, columns = self.window.along_axes(frame_matrix, images.shape[-2:], self.size, images)
        return DetectorOutput(score, (rows @ window_map @ columns.transpose(0, 1))[:, None])
