# SPDX-License-Identifier: Apache-2.0
"""Fitting a voxel grid to posed images."""

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

_FIRST_DENSITY = -4.0  # with more, the hull's own surface takes the colors, and holes fill with fog
_PRUNE_SHARE = 0.1  # of the steps, after which the fine grid knows what is seen
_KEEP_DENSITY = 0.02  # optical depth of a cell below which a vertex is dropped
_KEEP_LIGHT = 0.1  # light that a vertex gives off in all views together, below which it is dropped
_MOST_PIXELS = 2_000_000


@dataclass(frozen=True)
class VoxelFitSettings:
    """Recipe of a voxel grid's fit.

    Args:
        steps: optimizer steps.
        rays: rays of a step.
        cell: distance of the vertices, in pixels as seen from the median camera.
        max_resolution: most vertices along a side; a finer grid is made coarser.
        coarse_share: share of the steps on a grid of half the resolution, after which only what is seen is kept.
        rate: Adam's rate, falling to a tenth of it.
        random_background: share of the steps that draw the background's color anew where the foreground is known.
        alpha_weight: weight of the mean alpha outside the foreground, where it is known.
        smoothness: weight of the squared differences between neighboring vertices.
        seed: of everything random.
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

    The grid is laid around the visual hull where masks are known, else around what the cameras look at.

    Args:
        images: RGB in [0, 1]; over white where ``foreground`` is given; their device is the one that is fitted on.
        cameras: C cameras of the images' size.
        foreground: masks of the object in [0, 1], or None if the background belongs to the scene.
        settings: the recipe; our default if None.
        held_out: indices of views that are not fitted but measure the PSNR.
        checkpoint: file that an interrupted fit continues from; see ``fit_gaussians``.
        progress: show a bar.

    Returns:
        the scene, and its mean PSNR in dB on the held-out views (NaN without any).

    Raises:
        ValueError: if shapes disagree, nothing is left to fit, or the checkpoint belongs to another fit.
    """
    settings = settings or VoxelFitSettings()
    check_views(images, cameras, foreground, held_out)
    cameras = cameras.to(images.device).to(torch.float32)
    start = time.perf_counter()
    fitted = [index for index in range(len(images)) if index not in set(held_out)]
    fitter = _VoxelFitter(images[fitted], cameras[fitted], None if foreground is None else foreground[fitted], settings)
    fitter.run(None if checkpoint is None else Path(checkpoint), progress=progress)
    scene = fitter.scene()
    psnr = held_out_psnr(scene, images, cameras, held_out, white=foreground is not None)
    logger.info(
        "Fitted %d voxels to %d views in %.0f s; PSNR on %d held-out views %.2f dB.",
        len(scene), len(fitted), time.perf_counter() - start, len(held_out), psnr,
    )  # fmt: skip
    return scene, psnr


class _VoxelFitter(FitLoop):
    """A grid between the steps of its fit."""

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
        self._lay(2 * self.cell, hull)

    def _points(self, cell: float) -> Float[Tensor, "x y z 3"]:
        """Vertices of the grid, in cells."""
        counts = ((self.upper - self.lower) / cell).ceil().long() + 1
        ticks = [torch.arange(count, device=self.device) for count in counts.tolist()]
        return torch.stack(torch.meshgrid(*ticks, indexing="ij"), -1).float()

    def _lay(self, cell: float, hull: Bool[Tensor, "a b c"]) -> None:
        """Begin with all vertices in the hull, nearly transparent."""
        points = self._points(cell) * cell / (self.upper - self.lower)
        last = points.new_tensor(hull.shape) - 1
        where = (points * (last + 1)).long().minimum(last.long())
        kept = hull[tuple(where.unbind(-1))]
        values = torch.zeros(int(kept.sum()), 4, device=self.device)
        values[:, 0] = _FIRST_DENSITY
        self._take(cell, kept, values)

    def _take(self, cell: float, kept: Bool[Tensor, "x y z"], values: Tensor) -> None:
        self.kept, self.current_cell = kept, cell
        self.table, self.blocks = index_vertices(kept)
        self.neighbors = [_neighbors(self.table, axis) for axis in range(3)]
        self.values = values.detach().clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.values], lr=self.settings.rate, betas=(0.9, 0.99), eps=1e-15)

    def _voxels(self, values: Tensor) -> Voxels:
        return Voxels(self.lower, self.current_cell, self.table, self.blocks, values)

    def _seen(self) -> Bool[Tensor, " v"]:
        """Which vertices some view sees the color of: those that the sum of all colors depends on."""
        total = torch.zeros_like(self.values)
        every = max(1, len(self.pixels) // _MOST_PIXELS)
        for some in torch.arange(0, len(self.pixels), every, device=self.device).split(65536):
            colors, _, _ = render_voxels(self._voxels(self.values), self.pixels.rays(some), 1.0)
            total += torch.autograd.grad(colors.sum(), self.values)[0]
        return every * total[:, 1:].sum(1) > _KEEP_LIGHT

    def _worth_keeping(self) -> Float[Tensor, "1 1 x y z"]:
        """1 at the vertices that are seen and dense."""
        seen = self._seen()
        chosen = torch.zeros(self.kept.shape, device=self.device)
        chosen[self.kept] = (seen & (F.softplus(self.values.detach()[:, 0]) > _KEEP_DENSITY)).float()
        return chosen[None, None]

    def _refine(self) -> None:
        """Halve the cells around what is seen and dense."""
        chosen = self._worth_keeping()
        with torch.no_grad():
            points = self._points(self.cell) * (self.cell / self.current_cell)
            last = torch.tensor(self.kept.shape, device=self.device) - 2
            # cells with a vertex that is seen
            wide = F.max_pool3d(chosen, 2, 1)[0, 0] > 0
            kept = wide[tuple(points.long().minimum(last).unbind(-1))]
            values, _ = interpolate(self._voxels(self.values), points[kept])
        self._take(self.cell, kept, values)

    def _prune(self) -> None:
        """Drop what no view sees, with what the optimizer knows of it; neighbors of what is seen stay."""
        wide = F.max_pool3d(self._worth_keeping(), 3, 1, 1)[0, 0] > 0
        rows = wide[self.kept]
        moments = {
            name: moment[rows] if moment.ndim else moment for name, moment in self.optimizer.state[self.values].items()
        }
        self._take(self.current_cell, self.kept & wide, self.values[rows])
        self.optimizer.state[self.values] = moments

    def one_step(self) -> None:
        """One batch of rays."""
        settings = self.settings
        if self.step == self.fine_from:
            self._refine()
        if self.step == self.prune_at:
            self._prune()
        chosen = torch.randint(len(self.pixels), (settings.rays,), generator=self.generator).to(self.device)
        jitter = torch.rand(settings.rays, generator=self.generator).to(self.device)
        colors, _, alpha = render_voxels(self._voxels(self.values), self.pixels.rays(chosen), 1.0, jitter)
        background = torch.full((3,), float(self.white), device=self.device)
        if self.white and float(torch.rand((), generator=self.generator)) < settings.random_background:
            background = torch.rand(3, generator=self.generator).to(self.device)
        target, outside = self.pixels.target(chosen, background, alpha)
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
        """Mean squared difference between neighbors, summed over channels."""
        pairs = [self.values[here] - self.values[there] for here, there in self.neighbors]
        return torch.stack([difference.square().sum(1).mean() for difference in pairs]).sum()

    @property
    def count(self) -> str:
        """Number of vertices."""
        return f"{len(self.values)} voxels"

    def scene(self) -> VoxelScene:
        """What has been fitted so far."""
        scene = VoxelScene()
        scene.set_voxels(self.lower, self.current_cell, self.kept, self.values)
        return scene

    def state(self) -> dict[str, Any]:
        """What a fit continues from."""
        return {
            "generator": self.generator.get_state(),
            "cell": self.current_cell,
            "kept": self.kept,
            "values": self.values.detach(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.generator.set_state(state["generator"])
        self._take(state["cell"], state["kept"].to(self.device), state["values"].to(self.device))
        self.optimizer.load_state_dict(state["optimizer"])


def _neighbors(table: Int[Tensor, "x y z"], axis: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Rows of kept vertices, and of those that come next along an axis."""
    here, there = (table.narrow(axis, start, table.shape[axis] - 1) for start in (0, 1))
    both = (here >= 0) & (there >= 0)
    return here[both].long(), there[both].long()
