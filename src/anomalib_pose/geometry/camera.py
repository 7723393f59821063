# SPDX-License-Identifier: Apache-2.0
"""Pinhole cameras, and the resizing of images together with their intrinsics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry.se3 import rigid_inverse, rotation_angle

_OPENGL_TO_OPENCV = (1.0, -1.0, -1.0, 1.0)


@dataclass(frozen=True)
class Camera:
    """One pinhole camera, or a batch of pinhole cameras of one image size.

    Convention:
        OpenCV axes (+x right, +y down, +z forward). ``p_world = camera_to_world @ p_camera``. The point (0.5, 0.5) is
        the center of the first pixel. Lengths are in scene units.

    Args:
        camera_to_world: rigid motion (..., 4, 4).
        K: intrinsics (..., 3, 3) in pixels, with the batch shape of ``camera_to_world``.
        width: image width in pixels.
        height: image height in pixels.

    Raises:
        ValueError: if shapes disagree or the image is empty.
    """

    camera_to_world: Tensor
    K: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        pose, intrinsics = self.camera_to_world.shape, self.K.shape
        if pose[-2:] != (4, 4) or intrinsics[-2:] != (3, 3) or pose[:-2] != intrinsics[:-2]:
            msg = (
                "A camera needs camera_to_world (..., 4, 4) and K (..., 3, 3) with equal leading dimensions, "
                f"got {tuple(pose)} and {tuple(intrinsics)}."
            )
            raise ValueError(msg)
        if self.width < 1 or self.height < 1:
            msg = f"A camera needs a positive image size, got {self.width} x {self.height}."
            raise ValueError(msg)

    @classmethod
    def from_opengl(cls, camera_to_world: Float[Tensor, "*batch 4 4"], K: Tensor, width: int, height: int) -> "Camera":  # noqa: N803
        """Create a camera from a pose with OpenGL axes (+y up, looking along -z), as in Blender and NeRF files."""
        return cls(camera_to_world * camera_to_world.new_tensor(_OPENGL_TO_OPENCV), K, width, height)

    @classmethod
    def from_fov(
        cls, camera_to_world: Float[Tensor, "*batch 4 4"], camera_angle_x: float, width: int, height: int
    ) -> "Camera":
        """Create a camera with OpenCV axes, square pixels and a centered principal point.

        Args:
            camera_to_world: rigid motion (..., 4, 4).
            camera_angle_x: horizontal field of view, radians, in (0, pi).
            width: image width in pixels.
            height: image height in pixels.

        Raises:
            ValueError: if the field of view is outside (0, pi).
        """
        if not 0 < camera_angle_x < math.pi:
            msg = f"camera_angle_x should be a field of view in radians between 0 and pi, got {camera_angle_x}."
            raise ValueError(msg)
        focal = 0.5 * width / math.tan(0.5 * camera_angle_x)
        intrinsics = camera_to_world.new_tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        return cls(camera_to_world, intrinsics.expand(*camera_to_world.shape[:-2], 3, 3).clone(), width, height)

    @classmethod
    def stack(cls, cameras: Sequence["Camera"]) -> "Camera":
        """Stack cameras along a new first dimension.

        Raises:
            ValueError: if there is no camera, or if image sizes differ.
        """
        sizes = {(camera.width, camera.height) for camera in cameras}
        if len(sizes) != 1:
            msg = f"Cameras to stack should have one image size, got {sorted(sizes)}. Resize them first."
            raise ValueError(msg)
        width, height = sizes.pop()
        poses = torch.stack([camera.camera_to_world for camera in cameras])
        return cls(poses, torch.stack([camera.K for camera in cameras]), width, height)

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions; empty for one camera."""
        return self.camera_to_world.shape[:-2]

    @property
    def viewmat(self) -> Tensor:
        """World-to-camera motion (..., 4, 4)."""
        return rigid_inverse(self.camera_to_world)

    @property
    def center(self) -> Tensor:
        """Optical center (..., 3) in the world frame."""
        return self.camera_to_world[..., :3, 3]

    def __len__(self) -> int:
        """Number of cameras of a batched camera."""
        return self.camera_to_world.shape[0] if self.batch_shape else 1

    @property
    def median_intrinsics(self) -> Float[Tensor, "3 3"]:
        """Entrywise median of K over a batch of cameras."""
        # torch.median reads beyond the memory of expanded tensors, such as intrinsics that all cameras share.
        return self.K.contiguous().median(0).values

    def __getitem__(self, index: int | slice | Tensor | list[int]) -> "Camera":
        """Return the camera, or batch of cameras, at an index of the first batch dimension."""
        return replace(self, camera_to_world=self.camera_to_world[index], K=self.K[index])

    def to(self, target: torch.device | torch.dtype | str) -> "Camera":
        """Return the camera on a device or in a dtype."""
        return replace(self, camera_to_world=self.camera_to_world.to(target), K=self.K.to(target))

    def batched(self) -> "Camera":
        """Return the camera with exactly one leading dimension; a batch is returned unchanged."""
        if self.batch_shape:
            return self
        return replace(self, camera_to_world=self.camera_to_world[None], K=self.K[None])

    def with_pose(self, camera_to_world: Tensor) -> "Camera":
        """Return cameras with the same intrinsics, expanded if needed, at other poses."""
        intrinsics = self.K.expand(*camera_to_world.shape[:-2], 3, 3)
        return replace(self, camera_to_world=camera_to_world, K=intrinsics)

    def resized(self, width: int, height: int) -> "Camera":
        """Return the camera of the same view with another image size."""
        return replace(
            self, K=resize_intrinsics(self.K, self.width, self.height, width, height), width=width, height=height
        )

    def project(self, points: Float[Tensor, "n 3"]) -> tuple[Tensor, Tensor]:
        """Project points of the world frame.

        Returns:
            Pixel coordinates (..., n, 2) and depth along the optical axis (..., n). Coordinates of points with a depth
            of 0 or below have no meaning, so check the depth.
        """
        viewmat, points, K = _in_one_dtype(self.viewmat, points, self.K)  # noqa: N806
        in_camera = points @ viewmat[..., :3, :3].transpose(-1, -2) + viewmat[..., None, :3, 3]
        homogeneous = in_camera @ K.transpose(-1, -2)
        return homogeneous[..., :2] / homogeneous[..., 2:], in_camera[..., 2]

    def unproject(self, depth: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w 3"]:
        """Return the world points (..., h, w, 3) at the pixel centers of depth images.

        Args:
            depth: along the optical axis; one image per camera, of the camera's size.
        """
        depth, pose, K = _in_one_dtype(depth, self.camera_to_world, self.K)  # noqa: N806
        u = torch.arange(self.width, dtype=depth.dtype, device=depth.device) + 0.5
        v = torch.arange(self.height, dtype=depth.dtype, device=depth.device) + 0.5
        intrinsics = K[..., None, None, :, :]
        x = (u - intrinsics[..., 0, 2]) / intrinsics[..., 0, 0] * depth
        y = (v[:, None] - intrinsics[..., 1, 2]) / intrinsics[..., 1, 1] * depth
        in_camera = torch.stack([x, y, depth], -1)
        rotation = pose[..., None, :3, :3]
        return in_camera @ rotation.transpose(-1, -2) + pose[..., None, None, :3, 3]


def viewed_point(cameras: Camera) -> tuple[Float[Tensor, "3"], Float[Tensor, " c"]]:
    """Return the point nearest to all optical axes (least squares), and its distance from each axis.

    Args:
        cameras: C cameras.
    """
    axes, centers = cameras.camera_to_world[:, :3, 2].double(), cameras.center.double()
    identity = torch.eye(3, dtype=axes.dtype, device=axes.device)
    projections = identity - axes[:, :, None] * axes[:, None, :]  # onto the planes orthogonal to the axes
    # Parallel axes do not determine the depth. The small regularization towards the cameras' mean keeps the system
    # solvable.
    system = projections.sum(0) + 1e-6 * len(axes) * identity
    right_hand_side = (projections @ centers[..., None]).sum(0)[:, 0] + 1e-6 * len(axes) * centers.mean(0)
    point = torch.linalg.solve(system, right_hand_side)
    distances = (projections @ (point - centers)[..., None])[..., 0].norm(dim=-1)
    return point.to(cameras.camera_to_world), distances.to(cameras.camera_to_world)


def resize_intrinsics(
    K: Float[Tensor, "*batch 3 3"],  # noqa: N803
    from_width: int,
    from_height: int,
    width: int,
    height: int,
) -> Float[Tensor, "*batch 3 3"]:
    """Return the intrinsics after a resize of the image. With half-pixel centers both rows scale without an offset."""
    scale = K.new_tensor([width / from_width, height / from_height, 1.0])
    return K * scale[:, None]


def scale_focal_lengths(K: Float[Tensor, "*batch 3 3"], factor: float) -> Float[Tensor, "*batch 3 3"]:  # noqa: N803
    """Multiply both focal lengths by a factor; the principal point stays.

    Args:
        K: intrinsics in pixels, without skew.
        factor: above 0.
    """
    return K * K.new_tensor([[factor, 1, 1], [1, factor, 1], [1, 1, 1]])


def resize_image_mask_K(  # noqa: N802
    image: Float[Tensor, "channels h w"],
    mask: Float[Tensor, "h w"] | None,
    K: Float[Tensor, "3 3"],  # noqa: N803
    width: int,
    height: int,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Resize an image, its mask and its intrinsics together.

    Args:
        image: image (C, H, W); resampled bilinearly with antialiasing.
        mask: mask (H, W) or None; resampled by nearest neighbors, so that a binary mask stays binary.
        K: intrinsics (3, 3) of the image before the resize.
        width: new width in pixels.
        height: new height in pixels.
    """
    from_height, from_width = image.shape[-2:]
    intrinsics = resize_intrinsics(K, from_width, from_height, width, height)
    if (from_width, from_height) == (width, height):
        return image, mask, intrinsics
    resized = F.interpolate(image[None], (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
    if mask is not None:
        mask = F.interpolate(mask[None, None], (height, width), mode="nearest-exact")[0, 0]
    return resized.clamp(0, 1), mask, intrinsics


def pose_error(estimate: Float[Tensor, "*batch 4 4"], truth: Float[Tensor, "*batch 4 4"]) -> tuple[Tensor, Tensor]:
    """Return the rotation angle (radians) and the distance of the optical centers (scene units) between two poses."""
    estimate, truth = _in_one_dtype(estimate, truth)
    angle = rotation_angle(estimate[..., :3, :3], truth[..., :3, :3])
    return angle, (estimate[..., :3, 3] - truth[..., :3, 3]).norm(dim=-1)


def projection_jacobian(
    x: Float[Tensor, "*n"], y: Float[Tensor, "*n"], inverse_depth: Float[Tensor, "*n"], dim: int
) -> tuple[Tensor, Tensor]:
    """Return the derivatives of X / Z and Y / Z with respect to the tangent (v, omega) that moves the points.

    The derivatives of the pixel coordinates are fx times the first and fy times the second result.

    Args:
        x: X / Z in the camera's frame.
        y: Y / Z.
        inverse_depth: 1 / Z.
        dim: dimension of the six components in the results.
    """
    zero = torch.zeros_like(x)
    by_x = torch.stack([inverse_depth, zero, -x * inverse_depth, -x * y, 1 + x * x, -y], dim)
    by_y = torch.stack([zero, inverse_depth, -y * inverse_depth, -1 - y * y, x * y, x], dim)
    return by_x, by_y


def _in_one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in their widest dtype: poses in a user's world are float64, intrinsics and scenes float32."""
    dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    return tuple(tensor.to(dtype) for tensor in tensors)
