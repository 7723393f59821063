# SPDX-License-Identifier: Apache-2.0
"""A scene as a radiance field on a sparse voxel grid."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.geometry import Camera
from anomalib_pose.render import RenderOutput
from anomalib_pose.render.volume import camera_rays, render_rays
from anomalib_pose.render.voxels import Voxels, index_vertices, render_voxels

_EXTENT_QUANTILE = 0.98
_DENSE = 0.5  # optical depth of a cell above which a vertex counts as part of the object


class VoxelScene(nn.Module):
    """A fitted object as density and color on the vertices of a sparse grid.

    The color does not depend on the viewing direction. Rays start and end where they enter and leave the grid, which
    the fit places around the object.

    Buffers: lower (3,), the first vertex, world frame; cell, the distance of neighboring vertices, scene units;
    shape (3,), the number of vertices per side; vertices (V, 3), the occupied vertices, in the order of the grid;
    values (V, 4), raw density and colors, see ``Voxels``.

    Args:
        step: distance between the samples of a ray, in cells.
    """

    lower: Tensor
    cell: Tensor
    shape: Tensor
    vertices: Tensor
    values: Tensor

    def __init__(self, step: float = 1.0) -> None:
        super().__init__()
        self.step = step
        self._voxels: Voxels | None = None
        self.register_buffer("lower", torch.zeros(3))
        self.register_buffer("cell", torch.tensor(1.0))
        self.register_buffer("shape", torch.zeros(3, dtype=torch.int32))
        self.register_buffer("vertices", torch.zeros(0, 3, dtype=torch.int16))
        self.register_buffer("values", torch.zeros(0, 4))

    def set_voxels(
        self, lower: Float[Tensor, "3"], cell: float, occupied: Bool[Tensor, "x y z"], values: Float[Tensor, "v 4"]
    ) -> None:
        """Replace the grid.

        Args:
            lower: position of the first vertex, world frame.
            cell: distance of neighboring vertices, scene units.
            occupied: which vertices have values.
            values: raw density and colors of the occupied vertices, in the order of the grid.

        Raises:
            ValueError: if there are not as many values as occupied vertices, or a value is not finite.
        """
        vertices = occupied.nonzero()
        if len(vertices) != len(values) or not bool(values.isfinite().all()):
            msg = f"Expected finite values for the {len(vertices)} occupied vertices, got {len(values)}."
            raise ValueError(msg)
        self.lower = lower.detach().clone()
        self.cell = torch.tensor(cell, device=values.device)
        self.shape = torch.tensor(occupied.shape, dtype=torch.int32, device=values.device)
        self.vertices, self.values = vertices.to(torch.int16), values.detach().clone()
        self._voxels = None

    def __len__(self) -> int:
        """Number of occupied vertices."""
        return len(self.values)

    @property
    def voxels(self) -> Voxels:
        """Grid for the renderer.

        Raises:
            ValueError: if the scene has not been fitted.
        """
        if not len(self):
            msg = "This scene holds no voxels. Fit it or load a checkpoint first."
            raise ValueError(msg)
        if self._voxels is None:
            occupied = torch.zeros(self.shape.tolist(), dtype=torch.bool, device=self.values.device)
            occupied[tuple(self.vertices.long().T)] = True
            self._voxels = Voxels(self.lower, float(self.cell), *index_vertices(occupied), self.values)
        return self._voxels

    def render(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Render images of the object; differentiable in the cameras' poses.

        Args:
            cameras: one camera, or C of them, on any device.
            background: color (3,) behind the object; black if None.

        Raises:
            ValueError: if the scene has not been fitted.
        """
        voxels = self.voxels
        return render_rays(
            lambda rays: render_voxels(voxels, rays, self.step), cameras.to(self.values.device), background
        )

    def render_pixels(self, camera: Camera, pixels: Tensor, background: Tensor) -> Float[Tensor, "n 3"]:
        """Render the colors of N pixels; differentiable in the camera's pose.

        Args:
            camera: one camera.
            pixels: indices (N,) of the image's pixels, row by row.
            background: color (3,) behind the object.
        """
        rgb, _, alpha = render_voxels(self.voxels, camera_rays(camera, pixels), self.step)
        return rgb + (1 - alpha)[:, None] * background

    def _dense_points(self) -> Float[Tensor, "n 3"]:
        """Return the positions of the dense vertices, or of all occupied vertices if none is dense."""
        dense = self.vertices[F.softplus(self.values[:, 0]) > _DENSE]
        return self.lower + self.cell * (dense if len(dense) else self.vertices).float()

    @property
    def center(self) -> Float[Tensor, "3"]:
        """Median of the dense vertices, world frame; the origin of an empty scene."""
        return self._dense_points().median(0).values if len(self) else torch.zeros_like(self.lower)

    @property
    def extent(self) -> float:
        """Radius of the ball around the center that holds 98 % of the dense vertices, scene units; 0 if empty."""
        if not len(self):
            return 0.0
        distance = (self._dense_points() - self.center).norm(dim=1)
        return float(distance.sort().values[int(_EXTENT_QUANTILE * (len(distance) - 1))])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the number of vertices from the checkpoint."""
        resize_buffers(self, ("vertices", "values"), state_dict, prefix)
        self._voxels = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, *args: Any, **kwargs: Any) -> "VoxelScene":
        """Drop the cached grid, which belongs to the old device and dtype."""
        self._voxels = None
        return super()._apply(*args, **kwargs)
