# SPDX-License-Identifier: Apache-2.0
"""Fit of a sparse voxel grid to posed images."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import Camera
from anomalib_pose.render.voxels import Voxels, index_vertices, interpolate, render_voxels
from anomalib_pose.scene.fit_loop import FitLoop, check_views, fingerprint, held_out_psnr
from anomalib_pose.scene.hull import object_box
from anomalib_pose.scene.training_pixels import TrainingPixels
from anomalib_pose.scene.voxel_scene import VoxelScene

logger = logging.getLogger(__name__)

_INITIAL_DENSITY = -4.0  # with a higher value the hull's surface takes the colors, and holes fill with fog
_PRUNE_SHARE = 0.1  # fraction of the steps that the fine grid needs before invisible vertices can be pruned
_MIN_DENSITY = 0.02  # optical depth of a cell below which a vertex is dropped
_MIN_VISIBILITY = 0.1  # contribution of a vertex to the colors of all pixels below which the vertex is dropped
_MAX_PIXELS = 2_000_000
_PIXELS_PER_CHUNK = 65536


@dataclass(frozen=True)
class VoxelFitSettings:
    """Settings of a voxel grid's fit.

    Args:
        steps: optimizer steps.
        rays: rays per step.
        cell: distance of neighboring vertices, in pixels of a camera at the median distance.
        max_resolution: largest number of vertices along a side; a larger grid gets larger cells.
        coarse_share: fraction of the steps on a grid of half the resolution. The fine grid covers only coarse cells
            with a visible and dense vertex.
        rate: Adam's learning rate, which falls to a tenth.
        random_background: fraction of the steps with a random background color, if the foreground is known.
        alpha_weight: weight of the mean alpha outside the foreground, if the foreground is known.
        smoothness: weight of the squared differences between neighboring vertices.
        seed: seed of all random numbers.

    Raises:
        ValueError: if a number is out of range.
    """

    steps: int = 3000
    rays: int = 8192
    cell: float = 1.0
    max_resolution: int = 256
    coarse_share: float = 0.35
    rate: float = 0.1
    random_background: float = 0.2
    alpha_weight: float = 0.01
    smoothness: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.rays, self.max_resolution - 15) < 1 or self.cell <= 0 or self.rate <= 0:
            msg = (
                "A voxel fit needs steps, rays >= 1, max_resolution >= 16, cell and rate > 0, got "
                f"{self.steps}, {self.rays}, {self.max_resolution}, {self.cell} and {self.rate}."
            )
            raise ValueError(msg)


def fit_voxels(
    images: Float[Tensor, "c 3 h w"],
    cameras: Camera,
    foreground: Float[Tensor, "c h w"] | None = None,
    settings: VoxelFitSettings | None = None,
    *,
    held_out: tuple[int, ...] = (),
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> tuple[VoxelScene, float]:
    """Fit a sparse grid of density and color to an object.

    The grid covers the visual hull if masks are known, else the region that the cameras look at.

    Args:
        images: RGB in [0, 1]; over white if ``foreground`` is given; the fit runs on their device.
        cameras: C cameras of the images' size.
        foreground: masks of the object in [0, 1], or None if the background belongs to the scene.
        settings: the settings; the defaults if None.
        held_out: indices of views that do not take part in the fit and measure the PSNR.
        checkpoint: file that an interrupted fit continues from; see ``fit_gaussians``.
        progress: show a progress bar.

    Returns:
        The scene, and its mean PSNR in dB on the held-out views; NaN without held-out views.

    Raises:
        ValueError: if shapes disagree, fewer than two views remain to fit, or the checkpoint belongs to another fit.
    """
    settings = settings or VoxelFitSettings()
    check_views(images, cameras, foreground, held_out)
    cameras = cameras.to(images.device).to(torch.float32)
    start = time.perf_counter()
    training_indices = [index for index in range(len(images)) if index not in set(held_out)]
    training_masks = None if foreground is None else foreground[training_indices]
    fitter = _VoxelFitter(images[training_indices], cameras[training_indices], training_masks, settings)
    fitter.run(None if checkpoint is None else Path(checkpoint), progress=progress)
    scene = fitter.scene()
    psnr = held_out_psnr(scene, images, cameras, held_out, white=foreground is not None)
    logger.info(
        "Fitted %d voxels to %d views in %.0f s; PSNR on %d held-out views %.2f dB.",
        len(scene), len(training_indices), time.perf_counter() - start, len(held_out), psnr,
    )  # fmt: skip
    return scene, psnr


class _VoxelFitter(FitLoop):
    """State of the fit of a voxel grid."""

    def __init__(self, images: Tensor, cameras: Camera, foreground: Tensor | None, settings: VoxelFitSettings) -> None:
        super().__init__(settings.steps, "Fitting voxels")
        self.settings = settings
        self.fingerprint = fingerprint(images, cameras, settings)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.white = foreground is not None
        self.device = images.device
        self.fine_from = round(settings.coarse_share * settings.steps)
        self.prune_at = self.fine_from + max(1, round(_PRUNE_SHARE * settings.steps))
        hull, self.lower, self.upper = object_box(cameras, foreground)
        distance = (cameras.center - (self.lower + self.upper) / 2).norm(dim=1).median()
        pixel = float(distance / cameras.K[:, 0, 0].median())
        longest = float((self.upper - self.lower).max())
        self.cell = max(settings.cell * pixel, longest / (settings.max_resolution - 1))
        self.pixels = TrainingPixels.from_views(images, cameras, foreground)
        self._init_grid(2 * self.cell, hull)

    def _points(self, cell: float) -> Float[Tensor, "x y z 3"]:
        """Return the coordinates of all vertices of a grid, in cells."""
        counts = ((self.upper - self.lower) / cell).ceil().long() + 1
        ticks = [torch.arange(count, device=self.device) for count in counts.tolist()]
        return torch.stack(torch.meshgrid(*ticks, indexing="ij"), -1).float()

    def _init_grid(self, cell: float, hull: Bool[Tensor, "a b c"]) -> None:
        """Start with all vertices in the hull, nearly transparent."""
        points = self._points(cell) * cell / (self.upper - self.lower)
        last = points.new_tensor(hull.shape) - 1
        hull_cells = (points * (last + 1)).long().minimum(last.long())
        occupied = hull[tuple(hull_cells.unbind(-1))]
        values = torch.zeros(int(occupied.sum()), 4, device=self.device)
        values[:, 0] = _INITIAL_DENSITY
        self._set_grid(cell, occupied, values)

    def _set_grid(self, cell: float, occupied: Bool[Tensor, "x y z"], values: Tensor) -> None:
        """Replace the grid and start a new optimizer."""
        self.occupied, self.current_cell = occupied, cell
        self.table, self.blocks = index_vertices(occupied)
        self.neighbors = [_neighbor_pairs(self.table, axis) for axis in range(3)]
        self.values = values.detach().clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.values], lr=self.settings.rate, betas=(0.9, 0.99), eps=1e-15)

    def _voxels(self, values: Tensor) -> Voxels:
        return Voxels(self.lower, self.current_cell, self.table, self.blocks, values)

    def _visible(self) -> Bool[Tensor, " v"]:
        """Return which vertices are visible in some view, by the gradient of the sum of all colors."""
        gradient = torch.zeros_like(self.values)
        stride = max(1, len(self.pixels) // _MAX_PIXELS)
        for chunk in torch.arange(0, len(self.pixels), stride, device=self.device).split(_PIXELS_PER_CHUNK):
            colors, _, _ = render_voxels(self._voxels(self.values), self.pixels.rays(chunk), 1.0)
            gradient += torch.autograd.grad(colors.sum(), self.values)[0]
        return stride * gradient[:, 1:].sum(1) > _MIN_VISIBILITY

    def _visible_and_dense(self) -> Float[Tensor, "1 1 x y z"]:
        """Return 1 at the vertices that are visible and dense, else 0."""
        visible = self._visible()
        marks = torch.zeros(self.occupied.shape, device=self.device)
        marks[self.occupied] = (visible & (F.softplus(self.values.detach()[:, 0]) > _MIN_DENSITY)).float()
        return marks[None, None]

    def _refine(self) -> None:
        """Halve the cells around visible and dense vertices, and drop the rest."""
        marks = self._visible_and_dense()
        with torch.no_grad():
            points = self._points(self.cell) * (self.cell / self.current_cell)
            last = torch.tensor(self.occupied.shape, device=self.device) - 2
            occupied_cells = F.max_pool3d(marks, 2, 1)[0, 0] > 0  # cells with a marked vertex
            occupied = occupied_cells[tuple(points.long().minimum(last).unbind(-1))]
            values, _ = interpolate(self._voxels(self.values), points[occupied])
        self._set_grid(self.cell, occupied, values)

    def _prune(self) -> None:
        """Drop all vertices except visible and dense ones and their neighbors; Adam's moments stay."""
        near_marked = F.max_pool3d(self._visible_and_dense(), 3, 1, 1)[0, 0] > 0
        rows = near_marked[self.occupied]
        moments = {
            name: moment[rows] if moment.ndim else moment for name, moment in self.optimizer.state[self.values].items()
        }
        self._set_grid(self.current_cell, self.occupied & near_marked, self.values[rows])
        self.optimizer.state[self.values] = moments

    def one_step(self) -> None:
        """Fit one batch of random rays."""
        settings = self.settings
        if self.step == self.fine_from:
            self._refine()
        if self.step == self.prune_at:
            self._prune()
        indices = torch.randint(len(self.pixels), (settings.rays,), generator=self.generator).to(self.device)
        jitter = torch.rand(settings.rays, generator=self.generator).to(self.device)
        colors, _, alpha = render_voxels(self._voxels(self.values), self.pixels.rays(indices), 1.0, jitter)
        background = torch.full((3,), float(self.white), device=self.device)
        if self.white and float(torch.rand((), generator=self.generator)) < settings.random_background:
            background = torch.rand(3, generator=self.generator).to(self.device)
        target, outside = self.pixels.target(indices, background, alpha)
        difference = colors + (1 - alpha)[:, None] * background - target
        loss = difference.square().mean() + settings.alpha_weight * (outside * alpha).mean()
        if settings.smoothness and self.step % 4 == 0:
            loss = loss + 4 * settings.smoothness * self._roughness()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.param_groups[0]["lr"] = settings.rate * 0.1 ** (self.step / settings.steps)
        self.optimizer.step()
        self.note_psnr(difference.detach())

    def _roughness(self) -> Tensor:
        """Return the mean squared difference between neighboring vertices, summed over channels and axes."""
        differences = [self.values[first] - self.values[second] for first, second in self.neighbors]
        return torch.stack([difference.square().sum(1).mean() for difference in differences]).sum()

    @property
    def count(self) -> str:
        """Number of vertices."""
        return f"{len(self.values)} voxels"

    def scene(self) -> VoxelScene:
        """Return the scene in its current state."""
        scene = VoxelScene()
        scene.set_voxels(self.lower, self.current_cell, self.occupied, self.values)
        return scene

    def state(self) -> dict[str, Any]:
        """Return the state of the fit."""
        return {
            "generator": self.generator.get_state(),
            "cell": self.current_cell,
            "kept": self.occupied,
            "values": self.values.detach(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of the fit."""
        self.generator.set_state(state["generator"])
        self._set_grid(state["cell"], state["kept"].to(self.device), state["values"].to(self.device))
        self.optimizer.load_state_dict(state["optimizer"])


def _neighbor_pairs(table: Int[Tensor, "x y z"], axis: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the rows of all pairs of occupied vertices that are neighbors along an axis."""
    first, second = (table.narrow(axis, start, table.shape[axis] - 1) for start in (0, 1))
    both_occupied = (first >= 0) & (second >= 0)
    return first[both_occupied].long(), second[both_occupied].long()
