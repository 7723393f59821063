# SPDX-License-Identifier: Apache-2.0
"""View bank: thumbnails of rendered views, from which a query gets its initial poses."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.geometry import Camera, look_at, skew, view_sphere, viewed_point
from anomalib_pose.pose.roll import downscale_query, roll_matrix, undo_roll
from anomalib_pose.pose.types import Query
from anomalib_pose.progress import track
from anomalib_pose.scene import Scene

_THUMBNAIL_SIZE = 25
_RENDER_SIZE = 100
_BATCH_SIZE = 16
_CENTERED_TOLERANCE = 0.03  # fraction of the distance or of the image size; larger offsets count as off-center
_MIN_SEPARATION = math.radians(12)
_BOX_MARGIN = 0.05
_SQRT_FULL_SPHERE = math.sqrt(4 * math.pi)


def bank_poses(
    cameras: Camera,
    center: Float[Tensor, "3"],
    spacing: float = math.radians(8),
    reach: float = math.radians(32),
) -> Float[Tensor, "v 4 4"]:
    """Return the training poses, followed by new poses that fill the gaps between them.

    The new poses lie on an even view sphere around the object. They look at the point that the training cameras look
    at, so that an object that fills the training images stays inside the new views. If the training cameras have no
    common point, the new poses look at the center of the object. The new poses have the training cameras' median
    distance and mean up direction. They stay in the training poses' range of elevations, and within ``reach`` of the
    nearest training pose.

    Args:
        cameras: the training cameras.
        center: center of the object (3,), world frame.
        spacing: angle between neighboring new poses, radians.
        reach: largest angle from the nearest training direction, radians. The default is more than half of MAD's gap of
            40 degrees.
    """
    poses = cameras.camera_to_world
    target, axis_distances = viewed_point(cameras)
    if bool((axis_distances > _CENTERED_TOLERANCE * (cameras.center - target).norm(dim=-1)).any()):
        target = center
    offsets = poses[:, :3, 3] - target
    distance = offsets.norm(dim=-1)
    directions = offsets / distance[:, None]
    up = F.normalize(-poses[:, :3, 1].mean(0), dim=0)
    # The sphere has z upwards. A basis with `up` as its third axis rotates the sphere to the object's frame.
    axes = look_at(torch.zeros_like(up), up, F.one_hot(up.abs().argmin(), 3).to(up))[:3, :3]
    elevation = torch.asin((directions @ axes[:, 2]).clamp(-1, 1))
    lowest, highest = float(elevation.min()) - spacing / 2, float(elevation.max()) + spacing / 2
    limits = (min(highest, math.pi / 2), max(lowest, -math.pi / 2))
    area_fraction = (math.sin(limits[0]) - math.sin(limits[1])) / 2
    count = max(1, round(area_fraction * (_SQRT_FULL_SPHERE / spacing) ** 2))
    new_directions = view_sphere(count, 1.0, *limits)[:, :3, 3].to(axes) @ axes.T
    within_reach = (new_directions @ directions.T).amax(1) > math.cos(reach)
    new_centers = new_directions[within_reach] * distance.median() + target
    if not len(new_centers):
        return poses
    return torch.cat([poses, look_at(new_centers, target, axes[:, 2])])


class ViewBank(nn.Module):
    """Poses of rendered views with one zero-mean, normalized thumbnail each.

    If all training cameras look at the object from one distance, as in MAD, thumbnails show the whole frame. Otherwise
    they show the box of the silhouette (``by_box``), so that the object's place and size in the image do not matter.

    Buffers, for any number V of views: poses (V, 4, 4) camera-to-world; thumbnails (V, 3 · 25²); boxes (V, 3), see
    ``_silhouette_box``; by_box; center (3,) of the object, world frame.

    Args:
        spacing: angle between the rendered views, degrees.
        rolls: number of in-plane rotations, evenly spaced, at which a query is compared with the views; 1 for the
            upright query alone.

    Raises:
        ValueError: if ``rolls`` is below 1 or ``spacing`` is not positive.
    """

    poses: Tensor
    thumbnails: Tensor
    boxes: Tensor
    by_box: Tensor
    center: Tensor

    def __init__(self, spacing: float = 8.0, rolls: int = 1) -> None:
        super().__init__()
        if rolls < 1:
            msg = f"rolls should be a number of in-plane rotations, 1 for the upright one alone, got {rolls}."
            raise ValueError(msg)
        if spacing <= 0:
            msg = f"The bank's spacing should be an angle in degrees above 0, got {spacing}."
            raise ValueError(msg)
        self.spacing = spacing
        self.rolls = rolls
        self.register_buffer("poses", torch.zeros(0, 4, 4))
        self.register_buffer("thumbnails", torch.zeros(0, 3 * _THUMBNAIL_SIZE**2))
        self.register_buffer("boxes", torch.zeros(0, 3))
        self.register_buffer("by_box", torch.tensor(data=False))
        self.register_buffer("center", torch.zeros(3))

    def __len__(self) -> int:
        """Number of views."""
        return len(self.poses)

    @torch.no_grad()
    def build(self, scene: Scene, cameras: Camera) -> None:
        """Render the views and store their thumbnails.

        Args:
            scene: the fitted object.
            cameras: the training cameras.
        """
        center = self.center = scene.center.to(cameras.camera_to_world)
        self.by_box = torch.tensor(_varies_in_image(cameras, center), device=center.device)
        poses = bank_poses(cameras, center, math.radians(self.spacing))
        scale = _RENDER_SIZE / max(cameras.width, cameras.height)
        eye = torch.eye(4, device=center.device)
        median_camera = Camera(eye, cameras.median_intrinsics, cameras.width, cameras.height)
        camera = median_camera.resized(max(1, round(cameras.width * scale)), max(1, round(cameras.height * scale)))
        thumbnails, boxes = [], []
        for batch in track(poses.split(_BATCH_SIZE), "Render views"):
            rendering = scene.render(camera.with_pose(batch), torch.ones(3, device=center.device))
            for rgb, alpha in zip(rendering.rgb, rendering.alpha, strict=True):
                thumbnails.append(self._thumbnail(rgb.permute(2, 0, 1), alpha))
                boxes.append(_silhouette_box(alpha, camera.K))
        self.poses, self.thumbnails, self.boxes = poses, torch.stack(thumbnails), torch.stack(boxes)

    @torch.no_grad()
    def nearest(self, query: Query, count: int) -> tuple[Float[Tensor, "s 4 4"], Float[Tensor, " s"]]:
        """Return the poses of the most similar views as initial poses, and their similarities.

        The selected views are at least 12 degrees apart if the bank allows it. Otherwise all initial poses could lie on
        the wrong side of an object with look-alike sides.

        With ``by_box`` the poses are moved so that the silhouette lies where the query's silhouette lies. With several
        ``rolls`` each view gets the in-plane rotation of the highest similarity.

        Args:
            query: the image.
            count: number of poses; fewer if the bank is smaller.

        Raises:
            ValueError: if the bank is empty.
        """
        if not len(self):
            msg = "The view bank is empty: fit the model or load its checkpoint first."
            raise ValueError(msg)
        if self.rolls == 1:
            similarity = self._similarity(query)
            best = self._select_separated(similarity, count)
            return self._aligned_poses(query, best), similarity[best]
        angles = [2 * math.pi * number / self.rolls for number in range(self.rolls)]
        small_query = downscale_query(query, _RENDER_SIZE)
        upright_queries = [undo_roll(small_query, angle) for angle in angles]
        similarity, roll = torch.stack([self._similarity(upright) for upright in upright_queries]).max(0)
        best = self._select_separated(similarity, count)
        poses = torch.cat([self._aligned_poses(upright_queries[int(roll[index])], index[None]) for index in best])
        rotations = torch.stack([roll_matrix(angle) for angle in angles]).to(poses)
        poses[:, :3, :3] = poses[:, :3, :3] @ rotations[roll[best]]
        return poses, similarity[best]

    def _similarity(self, query: Query) -> Float[Tensor, " v"]:
        return self.thumbnails @ self._thumbnail(query.image, query.foreground).to(self.thumbnails)

    def _aligned_poses(self, query: Query, indices: Tensor) -> Float[Tensor, "s 4 4"]:
        """Return poses of views; with ``by_box`` moved so that the silhouette matches the query's in place and size."""
        poses = self.poses[indices]
        if bool(self.by_box) and query.foreground is not None and bool((query.foreground > 0).any()):
            query_box = _silhouette_box(query.foreground, query.K).to(poses)
            return _align_to_box(poses, self.boxes[indices], query_box, self.center)
        return poses

    def _select_separated(self, similarity: Float[Tensor, " v"], count: int) -> Tensor:
        """Select the most similar views at least ``_MIN_SEPARATION`` apart; closer views follow at the end."""
        directions = F.normalize(self.poses[:, :3, 3] - self.center, dim=1)
        penalty = torch.zeros_like(similarity)
        best: list[Tensor] = []
        for _ in range(min(count, len(self))):
            best.append((similarity - penalty).argmax())
            near = directions @ directions[best[-1]] > math.cos(_MIN_SEPARATION)
            penalty = torch.where(near, penalty + 2, penalty)
            penalty[best[-1]] = torch.inf
        return torch.stack(best)

    def _thumbnail(self, image: Tensor, alpha: Tensor | None) -> Tensor:
        """Return the zero-mean, normalized thumbnail of an image, or with ``by_box`` of its silhouette's square."""
        if bool(self.by_box) and alpha is not None and bool((alpha > 0).any()):
            image = _crop_to_silhouette(image, alpha)
        small = F.adaptive_avg_pool2d(image[None], _THUMBNAIL_SIZE)[0].flatten()
        small = small - small.mean()
        return small / small.norm().clamp_min(1e-6)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the number of views from the checkpoint."""
        resize_buffers(self, ("poses", "thumbnails", "boxes"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _varies_in_image(cameras: Camera, center: Tensor) -> bool:
    """Return whether the object's place or size in the image differs between the cameras."""
    uv, depth = cameras.project(center[None])
    size = max(cameras.width, cameras.height)
    offset = (uv[:, 0] - uv[:, 0].mean(0)).norm(dim=-1).max() / size
    depth_spread = depth.std() / depth.mean().clamp_min(1e-9)
    return bool(offset > _CENTERED_TOLERANCE) or bool(depth_spread > _CENTERED_TOLERANCE)


def _silhouette_box(alpha: Float[Tensor, "h w"], K: Float[Tensor, "3 3"]) -> Float[Tensor, "3"]:  # noqa: N803
    """Return (x / z, y / z) of a silhouette's center of mass, and the root of its area divided by the focal length."""
    opaque = (alpha > 0.5).to(K)
    area = opaque.sum().clamp_min(1)
    rows = torch.arange(alpha.shape[0], device=K.device) + 0.5
    columns = torch.arange(alpha.shape[1], device=K.device) + 0.5
    u, v = (opaque.sum(0) * columns).sum() / area, (opaque.sum(1) * rows).sum() / area
    focal = (K[0, 0] * K[1, 1]).sqrt()
    return torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], area.sqrt() / focal])


def _crop_to_silhouette(image: Tensor, alpha: Tensor) -> Tensor:
    """Crop the square around a silhouette; pixels outside the image are white."""
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


def _align_to_box(poses: Tensor, boxes: Tensor, query_box: Tensor, center: Tensor) -> Tensor:
    """Rotate and shift cameras so that the object has the place and the size of the query's silhouette.

    Each camera rotates about its own center until the object lies in the query's direction. It then moves along that
    direction until the silhouette has the query's area. The visible side of the object stays the same.

    Args:
        poses: camera-to-world (S, 4, 4).
        boxes: silhouette boxes of the views (S, 3), see ``_silhouette_box``.
        query_box: silhouette box of the query (3,).
        center: center of the object (3,), world frame.
    """
    aligned = poses.clone()
    query_ray = F.normalize(torch.cat([query_box[:2], query_box.new_ones(1)]), dim=0)
    for pose, box in zip(aligned, boxes, strict=True):
        view_ray = F.normalize(torch.cat([box[:2], box.new_ones(1)]), dim=0)
        direction = pose[:3, :3] @ view_ray
        distance = (center - pose[:3, 3]).norm()
        approach = 1 - box[2] / query_box[2].clamp_min(1e-6)
        pose[:3, 3] += approach * distance * direction
        pose[:3, :3] = pose[:3, :3] @ _rotation_between(query_ray, view_ray)
    return aligned


def _rotation_between(first: Tensor, second: Tensor) -> Float[Tensor, "3 3"]:
    """Return the smallest rotation that maps the first unit vector to the second."""
    axis = torch.linalg.cross(first, second)
    cosine = (first @ second).clamp(-1, 1)
    cross = skew(axis)
    return torch.eye(3).to(cross) + cross + cross @ cross / (1 + cosine).clamp_min(1e-6)
