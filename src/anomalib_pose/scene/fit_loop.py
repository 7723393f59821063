# SPDX-License-Identifier: Apache-2.0
"""Common parts of all fits: input checks, the loop with progress bar and checkpoints, PSNR of held-out views."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.scene.protocol import Scene

logger = logging.getLogger(__name__)

_SAVE_EVERY = 500
_PSNR_STEPS = 24
_UPDATE_EVERY = 20


def check_views(images: Tensor, cameras: Camera, foreground: Tensor | None, held_out: tuple[int, ...]) -> None:
    """Check the input of a fit.

    Args:
        images: RGB (C, 3, H, W).
        cameras: C cameras of the images.
        foreground: masks (C, H, W), or None.
        held_out: indices of the held-out views.

    Raises:
        ValueError: if shapes disagree, poses are not finite, or fewer than two views remain to fit.
    """
    count, _, height, width = images.shape
    if len(cameras.batched()) != count or (cameras.height, cameras.width) != (height, width):
        msg = (
            f"{count} images of {width} x {height} pixels need as many cameras of that size, "
            f"got {len(cameras.batched())} of {cameras.width} x {cameras.height}."
        )
        raise ValueError(msg)
    if foreground is not None and tuple(foreground.shape) != (count, height, width):
        msg = f"foreground should have shape {(count, height, width)}, got {tuple(foreground.shape)}."
        raise ValueError(msg)
    if len(set(range(count)) - set(held_out)) < 2:
        msg = f"At least two views are needed to fit an object, got {count}, {len(held_out)} of them held out."
        raise ValueError(msg)
    if not bool(cameras.camera_to_world.isfinite().all()):
        msg = "Camera poses should be finite, got NaN or infinity."
        raise ValueError(msg)


@torch.no_grad()
def held_out_psnr(scene: Scene, images: Tensor, cameras: Camera, indices: tuple[int, ...], *, white: bool) -> float:
    """Return the mean PSNR in dB of the scene on held-out views; NaN without held-out views.

    Args:
        scene: a fitted scene.
        images: all images (C, 3, H, W).
        cameras: all cameras.
        indices: indices of the held-out views.
        white: render over white, else over black.
    """
    values = []
    background = torch.full((3,), float(white), device=images.device)
    for index in indices:
        rgb = scene.render(cameras[index], background).rgb.clamp(0, 1)
        values.append(-10 * (rgb.permute(2, 0, 1) - images[index]).square().mean().clamp_min(1e-12).log10())
    return float(torch.stack(values).mean()) if values else float("nan")


def fingerprint(images: Tensor, cameras: Camera, settings: Any) -> str:
    """Return a hash of the images, cameras and settings of a fit.

    Args:
        images: RGB (C, 3, H, W).
        cameras: C cameras of the images.
        settings: a dataclass.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    for tensor in (images[:, :, ::7, ::7], cameras.camera_to_world, cameras.K):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class FitLoop(ABC):
    """A fit that can be interrupted and continued.

    Args:
        steps: number of steps.
        title: title of the progress bar.
    """

    fingerprint: str

    def __init__(self, steps: int, title: str) -> None:
        self.steps = steps
        self.title = title
        self.step = 0
        self.recent_psnr = float("nan")

    @abstractmethod
    def one_step(self) -> None:
        """Do step ``self.step``; the loop increments the number afterwards."""

    @property
    @abstractmethod
    def count(self) -> str:
        """Current size of the scene, for the progress bar."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state of the fit without the number of the step."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of the fit."""

    def run(self, checkpoint: Path | None, *, progress: bool) -> None:
        """Run the remaining steps.

        Args:
            checkpoint: file that is saved every 500 steps and on an interruption, and removed at the end; or None.
            progress: show a progress bar.

        Raises:
            ValueError: if the checkpoint belongs to another fit.
        """
        if checkpoint is not None and checkpoint.is_file():
            self._load(checkpoint)
        with _progress_bar(self.title, self.steps, enabled=progress) as update:
            try:
                while self.step < self.steps:
                    self.one_step()
                    self.step += 1
                    if self.step % _UPDATE_EVERY == 0 or self.step == self.steps:
                        update(self.step, self.recent_psnr, self.count)
                    if checkpoint is not None and self.step % _SAVE_EVERY == 0:
                        self._save(checkpoint)
            except KeyboardInterrupt:
                if checkpoint is not None:
                    self._save(checkpoint)
                    logger.info(
                        "The fit was interrupted after %d steps. The same command continues from %s.",
                        self.step,
                        checkpoint,
                    )
                raise
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)

    def note_psnr(self, difference: Tensor) -> None:
        """Update the running PSNR with the color differences of one step."""
        psnr = float(-10 * difference.square().mean().clamp_min(1e-12).log10())
        weight = 1 / _PSNR_STEPS
        self.recent_psnr = (
            psnr if self.recent_psnr != self.recent_psnr else ((1 - weight) * self.recent_psnr + weight * psnr)
        )

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        torch.save({"fingerprint": self.fingerprint, "step": self.step, **self.state()}, temporary)
        temporary.replace(path)

    def _load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state.get("fingerprint") != self.fingerprint:
            msg = (
                f"The checkpoint {path} belongs to a fit of other images or with other settings. Remove it to start "
                "again, or name another checkpoint."
            )
            raise ValueError(msg)
        self.restore(state)
        self.step = state["step"]
        logger.info("The fit continues from step %d of the checkpoint %s.", self.step, path)


@contextlib.contextmanager
def _progress_bar(title: str, steps: int, *, enabled: bool) -> Iterator[Callable[[int, float, str], None]]:
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[psnr]:.1f} dB, {task.fields[count]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not enabled) as bar:
        task = bar.add_task("fit", total=steps, psnr=float("nan"), count="")

        def update(step: int, psnr: float, count: str) -> None:
            bar.update(task, completed=step, psnr=psnr, count=count)

        yield update
