# SPDX-License-Identifier: Apache-2.0
"""An object as a radiance field on a sparse grid of voxels."""

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

_ROBUST_SHARE = 0.98
_SOLID = 0.5  # optical depth of a cell from which on a vertex counts as part of the object


class VoxelScene(nn.Module):
    """A fitted object as density and color on the vertices of a sparse grid; color does not depend on direction.

    Near and far ends of the rays are where they enter and leave the grid, which the fit lays around the object.

    Buffers: lower (3,) first vertex, world frame; cell, scene units; shape (3,) vertices a side; vertices (V, 3) kept
    ones, in the order of the grid; values (V, 4) raw density and colors, see ``Voxels``.

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
        self, lower: Float[Tensor, "3"], cell: float, kept: Bool[Tensor, "x y z"], values: Float[Tensor, "v 4"]
    ) -> None:
        """Take over a grid.

        Args:
            lower: position of the first vertex, world frame.
            cell: distance of neighboring vertices, scene units.
            kept: which vertices have values.
            values: raw density and colors of the kept vertices, in the order of the grid.

        Raises:
            ValueError: if the number of values is not that of the kept vertices, or a value is not finite.
        """
        vertices = kept.nonzero()
        if len(vertices) != len(values) or not bool(values.isfinite().all()):
            msg = f"Expected finite values for the {len(vertices)} kept vertices, got {len(values)}."
            raise ValueError(msg)
        self.lower = lower.detach().clone()
        self.cell = torch.tensor(cell, device=values.device)
        self.shape = torch.tensor(kept.shape, dtype=torch.int32, device=values.device)
        self.vertices, self.values = vertices.to(torch.int16), values.detach().clone()
        self._voxels = None

    def __len__(self) -> int:
        """Number of vertices."""
        return len(self.values)

    @property
    def voxels(self) -> Voxels:
        """The grid as rays take it.

        Raises:
            ValueError: if the scene has not been fitted.
        """
        if not len(self):
            msg = "This scene holds no voxels: fit it or load a checkpoint first."
            raise ValueError(msg)
        if self._voxels is None:
            kept = torch.zeros(self.shape.tolist(), dtype=torch.bool, device=self.values.device)
            kept[tuple(self.vertices.long().T)] = True
            self._voxels = Voxels(self.lower, float(self.cell), *index_vertices(kept), self.values)
        return self._voxels

    def render(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Images of the object; differentiable in the cameras' poses.

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
        """Colors of some pixels; differentiable in the camera's pose.

        Args:
            camera: one camera.
            pixels: indices into the image's pixels, row by row.
            background: color (3,) behind the object.
        """
        rgb, _, alpha = render_voxels(self.voxels, camera_rays(camera, pixels), self.step)
        return rgb + (1 - alpha)[:, None] * background

    def _solid(self) -> Float[Tensor, "n 3"]:
        solid = self.vertices[F.softplus(self.values[:, 0]) > _SOLID]
        return self.lower + self.cell * (solid if len(solid) else self.vertices).float()

    @property
    def center(self) -> Float[Tensor, "3"]:
        """Median of the dense vertices, world frame; the origin of an empty scene."""
        return self._solid().median(0).values if len(self) else torch.zeros_like(self.lower)

    @property
    def extent(self) -> float:
        """Radius of the ball around the center that holds 98 % of the dense vertices, scene units; 0 if empty."""
        if not len(self):
            return 0.0
        distance = (self._solid() - self.center).norm(dim=1)
        return float(distance.sort().values[int(_ROBUST_SHARE * (len(distance) - 1))])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let a checkpoint decide how many vertices there are."""
        resize_buffers(self, ("vertices", "values"), state_dict, prefix)
        self._voxels = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, *args: Any, **kwargs: Any) -> "VoxelScene":
        """Another device or dtype makes another grid."""
        self._voxels = None
        return super()._apply(*args, **kwargs)
