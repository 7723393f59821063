# SPDX-License-Identifier: Apache-2.0
"""Bank of rendered views, from which an exported detector takes its initial poses.

Twin: ``anomalib_pose.pose.view_bank.ViewBank``. For equal thumbnails, ``RenderedBank.nearest`` selects the same views,
and ``RenderedBank.similarity`` agrees to 1e-4. ``RenderedBank.thumbnail`` agrees with the mean over equal parts to
1e-5; the twin's ``adaptive_avg_pool2d`` rounds the parts to whole pixels.
"""

import math

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from anomalib_pose.deploy.graph.packed_views import PackedViews, pack_view, resample_rendering
from anomalib_pose.deploy.graph.resample import pooling_matrix
from anomalib_pose.deploy.settings import THUMBNAIL
from anomalib_pose.geometry import Camera, farthest_point_sampling
from anomalib_pose.pose import bank_poses
from anomalib_pose.progress import track
from anomalib_pose.scene import Scene

_BATCH = 8
_MIN_ANGLE = math.radians(12)  # between two initial views of one query


def spread_poses(poses: Float[Tensor, "v 4 4"], center: Float[Tensor, "3"], count: int) -> Float[Tensor, "n 4 4"]:
    """Return ``count`` poses spread evenly over the directions from which the given poses see the object.

    Farthest-point sampling thins the given poses out. Where they are too few, further poses between them are added
    first. The result is shorter than ``count`` if no further poses can be added.

    Args:
        poses: camera-to-world poses that look at the object.
        center: middle of the object, world frame.
        count: number of poses.
    """
    candidates = poses
    spacing = math.radians(8)
    cameras = Camera(poses, torch.eye(3).to(poses).expand(len(poses), 3, 3), 1, 1)
    while len(candidates) < 2 * count and spacing > math.radians(0.5):
        spacing *= 0.75
        candidates = bank_poses(cameras, center, spacing, reach=math.radians(6))
    if len(candidates) <= count:
        return candidates
    offsets = candidates[:, :3, 3] - center
    # Positions combine direction and log distance: views from one side at two distances are different views.
    positions = torch.cat([offsets / offsets.norm(dim=1, keepdim=True), offsets.norm(dim=1, keepdim=True).log()], 1)
    return candidates[farthest_point_sampling(positions.double(), count).to(candidates.device)]


class RenderedBank(PackedViews):
    """Rendered views with depth, and a descriptor of each for retrieval.

    Args:
        views: packed views (N, 4, H, W), see ``pack_view``.
        ranges: nearest and farthest depth of each view (N, 2), scene units.
        poses: camera-to-world of each view (N, 4, 4).
        intrinsics: K (3, 3) of all views.
        silhouettes_only: compare descriptors inside the silhouette only, for queries with an unknown background.
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
        # The bank does not know the object's center; the optical axes approximate the directions to it.
        self.register_buffer("directions", poses[:, :3, 2].clone())
        self.register_buffer("pool_rows", pooling_matrix(height, THUMBNAIL))
        self.register_buffer("pool_columns", pooling_matrix(width, THUMBNAIL).T.contiguous())
        weights, weighted, moments = [], [], []
        for batch in torch.arange(len(views)).split(64):
            view = self.view(batch)
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
        """Reduce images to 25 x 25 means over equal parts.

        Args:
            image: (B, C, H, W).
        """
        return self.pool_rows @ image @ self.pool_columns

    def similarity(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n"]:
        """Compute the normalized correlation of images with all views.

        Args:
            image: windows of queries, RGB in [0, 1].
        """
        small = self.thumbnail(image).flatten(2)
        mean, deviation = self.moments.unbind(1)
        query_mean = small.sum(1) @ self.weights
        query_variance = small.square().sum(1) @ self.weights - query_mean.square()
        product = small.flatten(1) @ self.weighted
        return (product - query_mean * mean) / (query_variance.clamp(min=1e-6).sqrt() * deviation)

    def nearest(self, image: Float[Tensor, "b 3 h w"], count: int) -> Int[Tensor, "b s"]:
        """Return the indices of the most similar views that are at least 12 degrees apart from each other.

        Args:
            image: windows of queries, RGB in [0, 1].
            count: number of views.
        """
        similarity = self.similarity(image)
        best = []
        for _ in range(count):
            best.append(similarity.argmax(1))
            near = self.directions.index_select(0, best[-1]) @ self.directions.T > math.cos(_MIN_ANGLE)
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
        """Render views of a scene at the size of photographs and crop them as queries are cropped.

        If views were rendered at their own size, the blur of every Gaussian would make the object look larger.

        Args:
            scene: the fitted object.
            poses: camera-to-world poses of the views.
            camera: intrinsics and size of photographs; its pose is not used.
            intrinsics: K of the views.
            rows: matrix from the rows of a photograph to the rows of a view.
            columns: matrix from the columns of a photograph to the columns of a view.
            silhouettes_only: see the class.
            progress: show a progress bar.
        """
        views, ranges = [], []
        for batch in track(poses.split(_BATCH), "Render the view bank", shown=progress):
            output = resample_rendering(scene.render(camera.with_pose(batch), torch.ones(3).to(batch)), rows, columns)
            for rgb, depth, alpha in zip(output.rgb.cpu(), output.depth.cpu(), output.alpha.cpu(), strict=True):
                packed, limits = pack_view(rgb, depth, alpha)
                views.append(packed)
                ranges.append(limits)
        return cls(
            torch.stack(views), torch.stack(ranges), poses.cpu(), intrinsics.cpu(), silhouettes_only=silhouettes_only
        )
