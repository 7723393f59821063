# SPDX-License-Identifier: Apache-2.0
"""Rendered views of an object that the pose search starts from."""

import logging
import math

import torch
from jaxtyping import Float, Int, UInt8
from rich.progress import track
from torch import Tensor

from anomalib_pose.deploy.graph.packed_views import PackedViews, pack, resampled
from anomalib_pose.deploy.graph.resample import pooling_matrix
from anomalib_pose.deploy.settings import THUMBNAIL
from anomalib_pose.geometry import Camera, farthest_point_sampling
from anomalib_pose.pose import bank_poses
from anomalib_pose.scene import Scene

logger = logging.getLogger(__name__)

_BATCH = 8
_APART = math.radians(12)


def spread_poses(poses: Float[Tensor, "v 4 4"], center: Float[Tensor, "3"], count: int) -> Float[Tensor, "n 4 4"]:
    """As many poses as asked for, spread evenly over the directions that the given ones see the object from.

    The given poses are thinned out by farthest-point sampling, or joined by further ones between them.

    Args:
        poses: camera-to-world, that look at the object.
        center: middle of the object, world frame.
        count: how many.
    """
    candidates = poses
    spacing = math.radians(8)
    looking = Camera(poses, torch.eye(3).to(poses).expand(len(poses), 3, 3), 1, 1)
    while len(candidates) < 2 * count and spacing > math.radians(0.5):
        spacing *= 0.75
        candidates = bank_poses(looking, center, spacing, reach=math.radians(6))
    if len(candidates) <= count:
        return candidates
    offsets = candidates[:, :3, 3] - center
    # Direction and nearness together: views from one side at two distances are two views.
    places = torch.cat([offsets / offsets.norm(dim=1, keepdim=True), offsets.norm(dim=1, keepdim=True).log()], 1)
    return candidates[farthest_point_sampling(places.double(), count).to(places.device)]


class RenderedBank(PackedViews):
    """Views with depth, and the descriptors to find them by.

    Args:
        views: packed (N, 4, H, W), see ``pack``.
        ranges: nearest and farthest depth of each (N, 2), scene units.
        poses: camera-to-world of each (N, 4, 4).
        intrinsics: K (3, 3) of all.
        silhouettes_only: compare descriptors inside the silhouette only, for queries whose background is unknown.
    """

    directions: Tensor
    weighted: Tensor
    weights: Tensor
    moments: Tensor
    pool_rows: Tensor
    pool_columns: Tensor

    def __init__(
        self,
        views: UInt8[Tensor, "n 4 h w"],
        ranges: Float[Tensor, "n 2"],
        poses: Float[Tensor, "n 4 4"],
        intrinsics: Float[Tensor, "3 3"],
        *,
        silhouettes_only: bool,
    ) -> None:
        super().__init__(views, ranges, poses, intrinsics, float(ranges.mean()))
        height, width = views.shape[-2:]
        # Without the object's center at hand: where the optical axes point is where the cameras are, turned round.
        self.register_buffer("directions", poses[:, :3, 2].clone())
        self.register_buffer("pool_rows", pooling_matrix(height, THUMBNAIL))
        self.register_buffer("pool_columns", pooling_matrix(width, THUMBNAIL).T.contiguous())
        weights, weighted, moments = [], [], []
        for some in torch.arange(len(views)).split(64):
            view = self.view(some)
            small = self.thumbnail(view.rgb)
            weight = self.thumbnail(view.alpha[:, None]) if silhouettes_only else torch.ones_like(small[:, :1])
            area = 3 * weight.sum((1, 2, 3)).clamp(min=1e-3)
            mean = (weight * small).sum((1, 2, 3)) / area
            variance = (weight * small.square()).sum((1, 2, 3)) / area - mean.square()
            weights.append(weight.flatten(1) / area[:, None])
            weighted.append((weight * small).flatten(1) / area[:, None])
            moments.append(torch.stack([mean, variance.clamp(min=1e-6).sqrt()], 1))
        self.register_buffer("weights", torch.cat(weights).T.contiguous())
        self.register_buffer("weighted", torch.cat(weighted).T.contiguous())
        self.register_buffer("moments", torch.cat(moments))

    def thumbnail(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c t t"]:
        """Means over equal parts of the image."""
        return self.pool_rows @ image @ self.pool_columns

    def similarity(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n"]:
        """Normalized correlation of images with all views.

        Args:
            image: windows of queries, RGB in [0, 1].
        """
        small = self.thumbnail(image).flatten(2)
        mean, spread = self.moments.unbind(1)
        own_mean = small.sum(1) @ self.weights
        own_variance = small.square().sum(1) @ self.weights - own_mean.square()
        product = small.flatten(1) @ self.weighted
        return (product - own_mean * mean) / (own_variance.clamp(min=1e-6).sqrt() * spread)

    def nearest(self, image: Float[Tensor, "b 3 h w"], count: int) -> Int[Tensor, "b s"]:
        """Indices of the most similar views that lie ``_APART`` from each other.

        Args:
            image: windows of queries, RGB in [0, 1].
            count: how many.
        """
        similarity = self.similarity(image)
        best = []
        for _ in range(count):
            best.append(similarity.argmax(1))
            near = self.directions.index_select(0, best[-1]) @ self.directions.T > math.cos(_APART)
            similarity = similarity - 2 * near
        return torch.stack(best, 1)

    @classmethod
    @torch.no_grad()
    def render(
        cls,
        scene: Scene,
        poses: Float[Tensor, "n 4 4"],
        camera: Camera,
        intrinsics: Float[Tensor, "3 3"],
        rows: Float[Tensor, "h height"],
        columns: Float[Tensor, "width w"],
        *,
        silhouettes_only: bool,
        progress: bool = False,
    ) -> "RenderedBank":
        """Render views of a scene as photographs and cut them out as queries are.

        Rendered in the size of the views, an object of Gaussians would be larger by the blur of every Gaussian.

        Args:
            scene: the fitted object.
            poses: of the views, camera-to-world.
            camera: intrinsics and size of photographs; its pose is not used.
            intrinsics: K of the views.
            rows: what the rows of a photograph are multiplied by to make those of a view.
            columns: the same for columns.
            silhouettes_only: see the class.
            progress: show a bar.
        """
        views, ranges = [], []
        for some in track(poses.split(_BATCH), "Rendering the bank", disable=not progress):
            output = resampled(scene.render(camera.with_pose(some), torch.ones(3).to(some)), rows, columns)
            for rgb, depth, alpha in zip(output.rgb.cpu(), output.depth.cpu(), output.alpha.cpu(), strict=True):
                packed, limits = pack(rgb, depth, alpha)
                views.append(packed)
                ranges.append(limits)
        return cls(
            torch.stack(views), torch.stack(ranges), poses.cpu(), intrinsics.cpu(), silhouettes_only=silhouettes_only
        )
