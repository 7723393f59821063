# SPDX-License-Identifier: Apache-2.0
"""Correction of renderings with the residuals of nearby training views, and view support of rendered pixels."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.geometry import Camera
from anomalib_pose.progress import track
from anomalib_pose.render import RenderOutput
from anomalib_pose.scene.protocol import Scene

_RESIDUAL_LEVELS = 127  # int8 steps of a residual in [-1, 1]; half a step is below the resolution of 8-bit photographs
_OPAQUE = 0.5
_MARGIN = 2  # pixels around the object that are stored
_SAME_POSE = 1e-5  # largest difference of the matrix entries of two equal poses

DEPTH_TOLERANCE = 0.03
"""Largest relative depth difference of two points on one surface."""

WEIGHT_OFFSET = 1e-4
"""Added to a view's angular distance, so that a view from exactly the camera's direction does not get all weight."""


class NearbyViews(nn.Module):
    """Residuals of training views, which correct renderings from nearby cameras.

    The residual of a training view is its photograph minus the rendering at its pose. A fitted scene is less sharp than
    the photographs, and its gloss is a mean over directions. From a nearby camera the same detail is missing. The
    correction of a rendering therefore has three steps. It projects the rendered surface points into the nearest
    training views. It reads the residual of each view that shows the same surface at the same depth. It adds the mean
    residual, weighted by the similarity of the viewing directions. This is image-based rendering; Debevec et al. 1996
    do the same with a model's texture.

    The training views also measure the support of a rendering: a color that no training view shows at a surface point
    has no view support (``support_residual``).

    Buffers, for V views cropped to the object: photographs (V, 3, h, w) in steps of 1 / 255, or empty; differences
    (V, 3, h, w), the residuals in steps of 1 / 127; depths (V, h, w), 0 beside the object; camera_to_world (V, 4, 4);
    intrinsics (V, 3, 3) of the crop; center (3,) of the object, world frame.

    Args:
        count: number of training views that correct a rendering.

    Raises:
        ValueError: if ``count`` is below 1.
    """

    photographs: Tensor
    differences: Tensor
    depths: Tensor
    camera_to_world: Tensor
    intrinsics: Tensor
    center: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        if count < 1:
            msg = f"count, the number of views that correct a rendering, should be 1 or more, got count={count}."
            raise ValueError(msg)
        self.count = count
        self.register_buffer("photographs", torch.zeros(0, 3, 1, 1, dtype=torch.uint8))
        self.register_buffer("differences", torch.zeros(0, 3, 1, 1, dtype=torch.int8))
        self.register_buffer("depths", torch.zeros(0, 1, 1, dtype=torch.float16))
        self.register_buffer("camera_to_world", torch.zeros(0, 4, 4))
        self.register_buffer("intrinsics", torch.zeros(0, 3, 3))
        self.register_buffer("center", torch.zeros(3))

    def __len__(self) -> int:
        """Number of training views."""
        return len(self.differences)

    @property
    def has_photographs(self) -> bool:
        """Whether the photographs are stored, which ``support_residual`` needs."""
        return len(self.photographs) > 0

    @torch.no_grad()
    def store_residuals(
        self, scene: Scene, images: Float[Tensor, "c 3 h w"], cameras: Camera, *, keep_photographs: bool = False
    ) -> None:
        """Store the residuals of training views.

        Args:
            scene: the scene, fitted to these views.
            images: RGB in [0, 1], over white if the foreground is known.
            cameras: C cameras of the images.
            keep_photographs: store the photographs too, which ``support_residual`` needs.
        """
        residuals, depths = [], []
        for index, image in enumerate(track(images, "Render training views")):
            rendering = scene.render(cameras[index], torch.ones(3).to(image))
            opaque = rendering.alpha > _OPAQUE
            residual = (image - rendering.rgb.permute(2, 0, 1).clamp(0, 1)) * opaque
            residuals.append((residual * _RESIDUAL_LEVELS).round().to(torch.int8))
            depths.append(torch.where(opaque, rendering.depth, 0).half())
        all_depths = torch.stack(depths)
        rows, columns = (_occupied_range((all_depths > 0).any(0).any(axis)) for axis in (1, 0))
        photographs = images if keep_photographs else images[:0]
        self.photographs = (photographs[..., rows, columns] * 255).round().to(torch.uint8)
        self.differences = torch.stack(residuals)[..., rows, columns].contiguous()
        self.depths = all_depths[..., rows, columns].contiguous()
        self.camera_to_world, self.intrinsics = cameras.camera_to_world.clone(), cameras.K.clone()
        self.intrinsics[:, :2, 2] -= self.intrinsics.new_tensor([columns.start, rows.start])
        self.center = scene.center.clone()

    @torch.no_grad()
    def correct_rendering(self, output: RenderOutput, camera: Camera) -> RenderOutput:
        """Add the residuals of the nearest training views to a rendering.

        A training view at exactly the camera's pose does not take part. The correction of a fitted view then has the
        same quality as the correction of a query, so statistics of normal views hold for queries.

        Args:
            output: the camera's rendering: color (H, W, 3), depth (H, W) and alpha (H, W).
            camera: one camera.
        """
        opaque = output.alpha > _OPAQUE
        if not bool(opaque.any()):
            return output
        points = camera.unproject(output.depth)[opaque]
        residual_sum, weight_sum = points.new_zeros(3, len(points)), points.new_full((len(points),), 1e-6)
        for index, angular_distance in self._nearest(camera):
            residuals, visible = self._sample_residuals(index, points)
            weight = visible / (angular_distance + WEIGHT_OFFSET)
            residual_sum += weight * residuals
            weight_sum += weight
        rgb = output.rgb.clone()
        rgb[opaque] += output.alpha[opaque][:, None] * (residual_sum / weight_sum).T
        return replace(output, rgb=rgb)

    @torch.no_grad()
    def support_residual(self, output: RenderOutput, camera: Camera) -> Float[Tensor, "h w"]:
        """Return how much each rendered color differs from the nearest training views at the same surface point.

        The difference is the largest over the color channels, and the smallest over the nearest views: in the other
        views the point may be hidden or glossy. Fog that the scene renders in mid-air has a large residual in all
        views, which marks it as unsupported.

        Args:
            output: the camera's rendering: color (H, W, 3), depth (H, W) and alpha (H, W).
            camera: one camera.

        Returns:
            Residuals in [0, 1]; 0 beside the object, and everywhere if no photographs are stored.
        """
        opaque, residual = output.alpha > _OPAQUE, torch.zeros_like(output.alpha)
        nearest = self._nearest(camera) if self.has_photographs else []
        if nearest and bool(opaque.any()):
            points = camera.unproject(output.depth)[opaque]
            colors = output.rgb[opaque].T
            view_residuals = [(self._sample_colors(index, points) - colors).abs().amax(0) for index, _ in nearest]
            residual[opaque] = torch.stack(view_residuals).amin(0)
        return residual

    def residual_image(self, index: int) -> Float[Tensor, "3 h w"]:
        """Return the residual of one training view, in [-1, 1]."""
        return self.differences[index].float() / _RESIDUAL_LEVELS

    def _sample_colors(self, index: int, points: Float[Tensor, "n 3"]) -> Float[Tensor, "3 n"]:
        """Sample the colors of one photograph at the projections of surface points."""
        grid, _ = self._project(index, points)
        photograph = self.photographs[index][None].to(points) / 255
        return F.grid_sample(photograph, grid, padding_mode="border", align_corners=False)[0, :, 0]

    def _sample_residuals(
        self, index: int, points: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, "3 n"], Float[Tensor, " n"]]:
        """Sample the residuals of one view at surface points; return them and 1 for each visible point, else 0."""
        grid, depth = self._project(index, points)
        residuals = F.grid_sample(self.residual_image(index)[None].to(points), grid, align_corners=False)
        view_depth = F.grid_sample(self.depths[index][None, None].to(points), grid, "nearest", align_corners=False)
        view_depth = view_depth[0, 0, 0]
        visible = (view_depth > 0) & ((depth - view_depth).abs() < DEPTH_TOLERANCE * depth)
        return residuals[0, :, 0], visible.to(points)

    def _project(
        self, index: int, points: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, "1 1 n 2"], Float[Tensor, " n"]]:
        """Project points into one view; return ``grid_sample`` coordinates in [-1, 1] and depths."""
        height, width = self.depths.shape[-2:]
        view_camera = Camera(self.camera_to_world[index], self.intrinsics[index], width, height)
        uv, depth = view_camera.project(points)
        return (2 * uv / uv.new_tensor([width, height]) - 1)[None, None], depth

    def _nearest(self, camera: Camera) -> list[tuple[int, float]]:
        """Return the indices of the views from the most similar directions, with one minus the cosine of the angle."""
        camera_offset, view_offsets = camera.center - self.center, self.camera_to_world[:, :3, 3] - self.center
        angular_distance = 1 - F.normalize(view_offsets, dim=1) @ F.normalize(camera_offset, dim=0)
        same_pose = (self.camera_to_world - camera.camera_to_world).abs().flatten(1).amax(1) < _SAME_POSE
        angular_distance, order = torch.where(same_pose, torch.inf, angular_distance).sort(stable=True)
        count = min(self.count, len(self) - int(same_pose.sum()))
        return list(zip(order[:count].tolist(), angular_distance[:count].tolist(), strict=True))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the number and the size of the views from the checkpoint.

        Raises:
            ValueError: if the loading is strict and the checkpoint holds no views.
        """
        strict = args[1]
        if strict and prefix + "differences" not in state_dict:
            msg = (
                "The checkpoint holds no training views that correct renderings: it was fitted with nearby_views: 0, "
                "or by an older version. Fit the model again, or load the checkpoint with nearby_views: 0."
            )
            raise ValueError(msg)
        resize_buffers(
            self, ("photographs", "differences", "depths", "camera_to_world", "intrinsics"), state_dict, prefix
        )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _occupied_range(occupied: Bool[Tensor, " n"]) -> slice:
    """Return the range from the first to the last occupied element, with a margin; all elements if none is occupied."""
    indices = occupied.nonzero().flatten().tolist()
    if not indices:
        return slice(0, len(occupied))
    return slice(max(0, indices[0] - _MARGIN), min(len(occupied), indices[-1] + 1 + _MARGIN))


@dataclass(frozen=True)
class CorrectedScene:
    """A scene whose renderings are corrected with the residuals of nearby training views.

    Args:
        scene: the fitted object.
        nearby: the training views.
    """

    scene: Scene
    nearby: NearbyViews

    @property
    def center(self) -> Tensor:
        """See ``Scene``."""
        return self.scene.center

    @property
    def extent(self) -> float:
        """See ``Scene``."""
        return self.scene.extent

    def render(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Render corrected images of the object; see ``Scene``."""
        output = self.scene.render(cameras, background)
        if not cameras.batch_shape:
            return self.nearby.correct_rendering(output, cameras)
        corrected = [self.nearby.correct_rendering(output[index], cameras[index]) for index in range(len(cameras))]
        return replace(output, rgb=torch.stack([rendering.rgb for rendering in corrected]))
