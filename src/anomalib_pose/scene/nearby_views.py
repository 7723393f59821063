# SPDX-License-Identifier: Apache-2.0
"""Renderings with what photographs from nearby show beyond them, and what none of those shows."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.geometry import Camera
from anomalib_pose.render import RenderOutput
from anomalib_pose.scene.protocol import Scene

_LEVELS = 127  # of a difference in [-1, 1]; half of one is less than what a photograph of 8 bits resolves
_OPAQUE = 0.5
_MARGIN = 2  # pixels around the object that are kept
_SAME_POSE = 1e-5
DEPTH_TOLERANCE = 0.03  # of the depth; what is farther apart is another surface
WEIGHT_OFFSET = 1e-4  # keeps a view from the very direction from having all the weight


class NearbyViews(nn.Module):
    """What photographs show beyond the renderings of a scene at their poses, to be added where a camera is near.

    A fitted scene is softer than photographs, and its gloss is a mean over directions. From a camera nearby the same is
    missing: the surface points that a rendering shows are looked up in the differences between the nearest photographs
    and their renderings, where those see the same surface, and the mean, weighted by nearness of the direction, is
    added (image-based rendering; Debevec et al. 1996 do the same with a model's texture).

    They also tell where a rendering is not to be trusted: where none of them shows what it shows
    (``support_residual``).

    Buffers: photographs (V, 3, h, w) in steps of 1 / 255, of the part of the images that shows the object; differences
    (V, 3, h, w) in steps of 1 / 127; depths (V, h, w), 0 where the object is not; camera_to_world (V, 4, 4); intrinsics
    (V, 3, 3) of that part; center (3,).

    Args:
        count: photographs that a rendering is corrected by.
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
            msg = f"A rendering is corrected by one photograph or more, got count={count}."
            raise ValueError(msg)
        self.count = count
        self.register_buffer("photographs", torch.zeros(0, 3, 1, 1, dtype=torch.uint8))
        self.register_buffer("differences", torch.zeros(0, 3, 1, 1, dtype=torch.int8))
        self.register_buffer("depths", torch.zeros(0, 1, 1, dtype=torch.float16))
        self.register_buffer("camera_to_world", torch.zeros(0, 4, 4))
        self.register_buffer("intrinsics", torch.zeros(0, 3, 3))
        self.register_buffer("center", torch.zeros(3))

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.differences)

    @property
    def has_photographs(self) -> bool:
        """Whether photographs are kept that ``support_residual`` can ask."""
        return len(self.photographs) > 0

    @torch.no_grad()
    def store_residuals(
        self, scene: Scene, images: Float[Tensor, "c 3 h w"], cameras: Camera, *, keep_photographs: bool = False
    ) -> None:
        """Keep what photographs show beyond the scene.

        Args:
            scene: fitted to them.
            images: RGB in [0, 1], over white where the foreground is known.
            cameras: C of them.
            keep_photographs: keep what ``support_residual`` needs, too.
        """
        differences, depths = [], []
        for index, image in enumerate(images):
            output = scene.render(cameras[index], torch.ones(3).to(image))
            opaque = output.alpha > _OPAQUE
            beyond = (image - output.rgb.permute(2, 0, 1).clamp(0, 1)) * opaque
            differences.append((beyond * _LEVELS).round().to(torch.int8))
            depths.append(torch.where(opaque, output.depth, 0).half())
        shown = torch.stack(depths)
        rows, columns = (_extent((shown > 0).any(0).any(axis)) for axis in (1, 0))
        kept = images if keep_photographs else images[:0]
        self.photographs = (kept[..., rows, columns] * 255).round().to(torch.uint8)
        self.differences = torch.stack(differences)[..., rows, columns].contiguous()
        self.depths = shown[..., rows, columns].contiguous()
        self.camera_to_world, self.intrinsics = cameras.camera_to_world.clone(), cameras.K.clone()
        self.intrinsics[:, :2, 2] -= self.intrinsics.new_tensor([columns.start, rows.start])
        self.center = scene.center.clone()

    @torch.no_grad()
    def correct_rendering(self, output: RenderOutput, camera: Camera) -> RenderOutput:
        """A rendering with what the nearest photographs show beyond theirs.

        A photograph from the very pose is left out: what is measured on good views that were fitted is to hold for
        queries.

        Args:
            output: color (H, W, 3), depth and alpha (H, W) as the camera sees the scene.
            camera: one camera.
        """
        shown = output.alpha > _OPAQUE
        if not bool(shown.any()):
            return output
        points = camera.unproject(output.depth)[shown]
        total, weights = points.new_zeros(3, len(points)), points.new_full((len(points),), 1e-6)
        for index, away in self._nearest(camera):
            difference, seen = self._look_up(index, points)
            weight = seen / (away + WEIGHT_OFFSET)
            total += weight * difference
            weights += weight
        rgb = output.rgb.clone()
        rgb[shown] += output.alpha[shown][:, None] * (total / weights).T
        return replace(output, rgb=rgb)

    @torch.no_grad()
    def support_residual(self, output: RenderOutput, camera: Camera) -> Float[Tensor, "h w"]:
        """How far from a rendering's colors the nearest photographs are, at the surface points that it shows.

        That of the photograph that is nearest in color counts, in its channel that differs most: from the others the
        point may be hidden, or show gloss. What a scene shows in mid-air, none of them shows. 0 beside the object,
        and everywhere without photographs.

        Args:
            output: color (H, W, 3), depth and alpha (H, W) as the camera sees the scene.
            camera: one camera.
        """
        shown, found = output.alpha > _OPAQUE, torch.zeros_like(output.alpha)
        nearest = self._nearest(camera) if self.has_photographs else []
        if nearest and bool(shown.any()):
            points = camera.unproject(output.depth)[shown]
            colors = output.rgb[shown].T
            away = [(self._photographed(index, points) - colors).abs().amax(0) for index, _ in nearest]
            found[shown] = torch.stack(away).amin(0)
        return found

    def residual_image(self, index: int) -> Float[Tensor, "3 h w"]:
        """What a photograph shows beyond its rendering, as parts of a color's range."""
        return self.differences[index].float() / _LEVELS

    def _photographed(self, index: int, points: Float[Tensor, "n 3"]) -> Float[Tensor, "3 n"]:
        """Colors of a photograph where it would show surface points."""
        places, _ = self._places(index, points)
        photograph = self.photographs[index][None].to(points) / 255
        return F.grid_sample(photograph, places, padding_mode="border", align_corners=False)[0, :, 0]

    def _places(self, index: int, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "1 1 n 2"], Float[Tensor, " n"]]:
        """Where a photograph would show surface points, from -1 to 1 in both axes, and their depths."""
        height, width = self.depths.shape[-2:]
        view = Camera(self.camera_to_world[index], self.intrinsics[index], width, height)
        uv, depth = view.project(points)
        return (2 * uv / uv.new_tensor([width, height]) - 1)[None, None], depth

    def _nearest(self, camera: Camera) -> list[tuple[int, float]]:
        """Photographs from the most similar directions, the nearest first, and one minus the cosine between them."""
        mine, theirs = camera.center - self.center, self.camera_to_world[:, :3, 3] - self.center
        away = 1 - F.normalize(theirs, dim=1) @ F.normalize(mine, dim=0)
        same = (self.camera_to_world - camera.camera_to_world).abs().flatten(1).amax(1) < _SAME_POSE
        away, order = torch.where(same, torch.inf, away).sort(stable=True)
        count = min(self.count, len(self) - int(same.sum()))
        return list(zip(order[:count].tolist(), away[:count].tolist(), strict=True))

    def _look_up(self, index: int, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "3 n"], Float[Tensor, " n"]]:
        """Differences of a photograph at surface points, and 1 where it shows them."""
        places, depth = self._places(index, points)
        difference = F.grid_sample(self.residual_image(index)[None].to(points), places, align_corners=False)
        surface = F.grid_sample(self.depths[index][None, None].to(points), places, "nearest", align_corners=False)
        surface = surface[0, 0, 0]
        same = (surface > 0) & ((depth - surface).abs() < DEPTH_TOLERANCE * depth)
        return difference[0, :, 0], same.to(points)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let a checkpoint decide how many photographs there are, and of which size.

        Raises:
            ValueError: if it holds none, and all it should hold is to be loaded.
        """
        strict = args[1]
        if strict and prefix + "differences" not in state_dict:
            msg = (
                "The checkpoint holds no photographs to correct renderings by: it was fitted with nearby_views 0, "
                "or by a version without them. Fit the model anew, or load the checkpoint with nearby_views: 0."
            )
            raise ValueError(msg)
        resize_buffers(
            self, ("photographs", "differences", "depths", "camera_to_world", "intrinsics"), state_dict, prefix
        )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _extent(occupied: Bool[Tensor, " n"]) -> slice:
    """From the first to the last that is occupied, with a margin; all if none is."""
    found = occupied.nonzero().flatten().tolist()
    if not found:
        return slice(0, len(occupied))
    return slice(max(0, found[0] - _MARGIN), min(len(occupied), found[-1] + 1 + _MARGIN))


@dataclass(frozen=True)
class CorrectedScene:
    """A scene whose renderings have what photographs from nearby show beyond them.

    Args:
        scene: the fitted object.
        nearby: the photographs.
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
        """Images of the object; see ``Scene``."""
        output = self.scene.render(cameras, background)
        if not cameras.batch_shape:
            return self.nearby.correct_rendering(output, cameras)
        single = [self.nearby.correct_rendering(output[index], cameras[index]) for index in range(len(cameras))]
        return replace(output, rgb=torch.stack([one.rgb for one in single]))
