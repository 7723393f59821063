# SPDX-License-Identifier: Apache-2.0
"""Rendered views of the object with a coarse descriptor each: where the pose search starts."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.geometry import Camera, look_at, view_sphere, viewed_point
from anomalib_pose.pose.roll import downscale_query, roll_matrix, undo_roll
from anomalib_pose.pose.types import Query
from anomalib_pose.scene import Scene

_THUMBNAIL = 25
_RENDER_SIZE = 100
_BATCH = 16
_OFF_AXIS = 0.03
_APART = math.radians(12)
_BOX_MARGIN = 0.05
_ROOT_OF_SPHERE = math.sqrt(4 * math.pi)


def bank_poses(
    cameras: Camera,
    center: Float[Tensor, "3"],
    spacing: float = math.radians(8),
    reach: float = math.radians(32),
) -> Float[Tensor, "v 4 4"]:
    """The training poses, and poses on an even view sphere around the object that fill the gaps between them.

    New poses look where the training cameras look, or at the center of the object where those look here and there:
    an object that fills their images would leave those of cameras that look elsewhere. They have the training cameras'
    median distance and are upright as those are on average. They keep to the band of elevations that the training poses
    span, and within ``reach`` of the nearest of them.

    Args:
        cameras: the training cameras.
        center: middle of the object, world frame.
        spacing: angle between neighboring new poses, radians.
        reach: largest angle from the nearest training direction, radians; wider than half of MAD's hole of 40 degrees.
    """
    poses = cameras.camera_to_world
    target, off = viewed_point(cameras)
    if bool((off > _OFF_AXIS * (cameras.center - target).norm(dim=-1)).any()):
        target = center
    offsets = poses[:, :3, 3] - target
    distance = offsets.norm(dim=-1)
    directions = offsets / distance[:, None]
    up = F.normalize(-poses[:, :3, 1].mean(0), dim=0)
    # A basis with `up` as its third axis carries the sphere, which has z upwards, to the object's frame.
    axes = look_at(torch.zeros_like(up), up, F.one_hot(up.abs().argmin(), 3).to(up))[:3, :3]
    elevation = torch.asin((directions @ axes[:, 2]).clamp(-1, 1))
    lowest, highest = float(elevation.min()) - spacing / 2, float(elevation.max()) + spacing / 2
    limits = (min(highest, math.pi / 2), max(lowest, -math.pi / 2))
    share = (math.sin(limits[0]) - math.sin(limits[1])) / 2
    count = max(1, round(share * (_ROOT_OF_SPHERE / spacing) ** 2))
    eyes = view_sphere(count, 1.0, *limits)[:, :3, 3].to(axes) @ axes.T
    near = (eyes @ directions.T).amax(1) > math.cos(reach)
    eyes = eyes[near] * distance.median() + target
    if not len(eyes):
        return poses
    return torch.cat([poses, look_at(eyes, target, axes[:, 2])])


class ViewBank(nn.Module):
    """Rendered views with a masked, zero-mean, normalized thumbnail each, kept as buffers of any number.

    Thumbnails are of the whole frame where all training cameras look at the object from one distance, as in MAD, and
    otherwise of the silhouette's box, which makes them independent of where in the image the object is and how large.

    Args:
        spacing: angle between the rendered views, degrees.
        rolls: evenly spaced turns about the optical axis that a query is compared with the views at; 1 for none.
    """

    poses: Tensor
    thumbnails: Tensor
    boxes: Tensor
    by_box: Tensor
    center: Tensor

    def __init__(self, spacing: float = 8.0, rolls: int = 1) -> None:
        super().__init__()
        if rolls < 1:
            msg = f"rolls is a number of turns, 1 for none but the upright one, got {rolls}."
            raise ValueError(msg)
        if spacing <= 0:
            msg = f"The bank's spacing is an angle in degrees above 0, got {spacing}."
            raise ValueError(msg)
        self.spacing = spacing
        self.rolls = rolls
        self.register_buffer("poses", torch.zeros(0, 4, 4))
        self.register_buffer("thumbnails", torch.zeros(0, 3 * _THUMBNAIL**2))
        self.register_buffer("boxes", torch.zeros(0, 3))
        self.register_buffer("by_box", torch.tensor(data=False))
        self.register_buffer("center", torch.zeros(3))

    def __len__(self) -> int:
        """Number of views."""
        return len(self.poses)

    @torch.no_grad()
    def build(self, scene: Scene, cameras: Camera) -> None:
        """Render the views.

        Args:
            scene: the fitted object.
            cameras: the training cameras.
        """
        center = self.center = scene.center.to(cameras.camera_to_world)
        self.by_box = torch.tensor(_varied(cameras, center), device=center.device)
        poses = bank_poses(cameras, center, math.radians(self.spacing))
        scale = _RENDER_SIZE / max(cameras.width, cameras.height)
        eye = torch.eye(4, device=center.device)
        typical = Camera(eye, cameras.median_intrinsics, cameras.width, cameras.height)
        small = typical.resized(max(1, round(cameras.width * scale)), max(1, round(cameras.height * scale)))
        thumbnails, boxes = [], []
        for some in poses.split(_BATCH):
            output = scene.render(small.with_pose(some), torch.ones(3, device=center.device))
            for rgb, alpha in zip(output.rgb, output.alpha, strict=True):
                thumbnails.append(self._thumbnail(rgb.permute(2, 0, 1), alpha))
                boxes.append(_box(alpha, small.K))
        self.poses, self.thumbnails, self.boxes = poses, torch.stack(thumbnails), torch.stack(boxes)

    @torch.no_grad()
    def nearest(self, query: Query, count: int) -> tuple[Float[Tensor, "s 4 4"], Float[Tensor, " s"]]:
        """Poses of the most similar views, and the similarities.

        Views from nearly the same direction count as one, or an object with look-alike sides would have all starts on
        the wrong side.

        Where thumbnails are of boxes, the poses are moved so that the silhouette lies where the query's does. With
        several ``rolls`` each view is offered at the turn at which it is most similar.

        Args:
            query: the image.
            count: how many; fewer if the bank is smaller.

        Raises:
            ValueError: if the bank is empty.
        """
        if not len(self):
            msg = "The view bank is empty: fit the model or load its checkpoint first."
            raise ValueError(msg)
        if self.rolls == 1:
            similarity = self._similarity(query)
            best = self._apart(similarity, count)
            return self._moved(query, best), similarity[best]
        angles = [2 * math.pi * number / self.rolls for number in range(self.rolls)]
        small = downscale_query(query, _RENDER_SIZE)
        upright = [undo_roll(small, angle) for angle in angles]
        similarity, roll = torch.stack([self._similarity(one) for one in upright]).max(0)
        best = self._apart(similarity, count)
        poses = torch.cat([self._moved(upright[int(roll[index])], index[None]) for index in best])
        turns = torch.stack([roll_matrix(angle) for angle in angles]).to(poses)
        poses[:, :3, :3] = poses[:, :3, :3] @ turns[roll[best]]
        return poses, similarity[best]

    def _similarity(self, query: Query) -> Float[Tensor, " v"]:
        return self.thumbnails @ self._thumbnail(query.image, query.foreground).to(self.thumbnails)

    def _moved(self, query: Query, views: Tensor) -> Float[Tensor, "s 4 4"]:
        """Poses of views, moved to where the query's silhouette is if thumbnails are of boxes."""
        poses = self.poses[views]
        if bool(self.by_box) and query.foreground is not None and bool((query.foreground > 0).any()):
            return _move_to_box(poses, self.boxes[views], _box(query.foreground, query.K).to(poses), self.center)
        return poses

    def _apart(self, similarity: Float[Tensor, " v"], count: int) -> Tensor:
        """Indices of the most similar views that lie ``_APART`` from each other; the nearer ones follow at the end."""
        directions = F.normalize(self.poses[:, :3, 3] - self.center, dim=1)
        penalty = torch.zeros_like(similarity)
        best: list[Tensor] = []
        for _ in range(min(count, len(self))):
            best.append((similarity - penalty).argmax())
            near = directions @ directions[best[-1]] > math.cos(_APART)
            penalty = torch.where(near, penalty + 2, penalty)
            penalty[best[-1]] = torch.inf
        return torch.stack(best)

    def _thumbnail(self, image: Tensor, alpha: Tensor | None) -> Tensor:
        if bool(self.by_box) and alpha is not None and bool((alpha > 0).any()):
            image = _crop_square(image, alpha)
        small = F.adaptive_avg_pool2d(image[None], _THUMBNAIL)[0].flatten()
        small = small - small.mean()
        return small / small.norm().clamp_min(1e-6)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let a checkpoint decide how many views there are."""
        resize_buffers(self, ("poses", "thumbnails", "boxes"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _varied(cameras: Camera, center: Tensor) -> bool:
    """Whether the object's place or size in the image differs between the cameras."""
    uv, depth = cameras.project(center[None])
    size = max(cameras.width, cameras.height)
    off = (uv[:, 0] - uv[:, 0].mean(0)).norm(dim=-1).max() / size
    spread = depth.std() / depth.mean().clamp_min(1e-9)
    return bool(off > _OFF_AXIS) or bool(spread > _OFF_AXIS)


def _box(alpha: Float[Tensor, "h w"], K: Float[Tensor, "3 3"]) -> Float[Tensor, "3"]:  # noqa: N803
    """Slopes (x, y) of a silhouette's center of mass, and the root of its area in units of the focal length."""
    opaque = (alpha > 0.5).to(K)
    area = opaque.sum().clamp_min(1)
    rows = torch.arange(alpha.shape[0], device=K.device) + 0.5
    columns = torch.arange(alpha.shape[1], device=K.device) + 0.5
    u, v = (opaque.sum(0) * columns).sum() / area, (opaque.sum(1) * rows).sum() / area
    focal = (K[0, 0] * K[1, 1]).sqrt()
    return torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], area.sqrt() / focal])


def _crop_square(image: Tensor, alpha: Tensor) -> Tensor:
    """The square around a silhouette, over white where it leaves the image."""
    opaque = alpha > 0.5 * alpha.max()
    rows, columns = opaque.any(1).nonzero()[:, 0], opaque.any(0).nonzero()[:, 0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = max(bottom - top, right - left)
    side += 2 * math.ceil(_BOX_MARGIN * side)
    top, left = (top + bottom - side) // 2, (left + right - side) // 2
    height, width = image.shape[-2:]
    padding = (max(0, -left), max(0, left + side - width), max(0, -top), max(0, top + side - height))
    padded = F.pad(image, padding, value=1.0)
    return padded[:, top + padding[2] :, left + padding[0] :][:, :side, :side]


def _move_to_box(poses: Tensor, boxes: Tensor, wanted: Tensor, center: Tensor) -> Tensor:
    """Turn and shift cameras so that the object appears in the wanted direction with the wanted size.

    The camera turns about its own center until the direction to the object is the wanted one in the image, then moves
    along that direction until the silhouette has the wanted area. The side of the object that is seen stays the same.
    """
    moved = poses.clone()
    wanted_ray = F.normalize(torch.cat([wanted[:2], wanted.new_ones(1)]), dim=0)
    for pose, box in zip(moved, boxes, strict=True):
        ray = F.normalize(torch.cat([box[:2], box.new_ones(1)]), dim=0)
        line = pose[:3, :3] @ ray
        distance = (center - pose[:3, 3]).norm()
        nearer = 1 - box[2] / wanted[2].clamp_min(1e-6)
        pose[:3, 3] += nearer * distance * line
        pose[:3, :3] = pose[:3, :3] @ _between(wanted_ray, ray)
    return moved


def _between(first: Tensor, second: Tensor) -> Float[Tensor, "3 3"]:
    """The smallest rotation that carries one unit vector to another."""
    axis = torch.linalg.cross(first, second)
    cosine = (first @ second).clamp(-1, 1)
    x, y, z = axis
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    return torch.eye(3).to(skew) + skew + skew @ skew / (1 + cosine).clamp_min(1e-6)
