# SPDX-License-Identifier: Apache-2.0
"""Common parts of all fits: input checks, the loop with progress bar and checkpoints, PSNR of held-out views."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.progress import show_progress, stage, track
from anomalib_pose.scene.protocol import Scene
from anomalib_pose.weights import write_weights

logger = logging.getLogger(__name__)

_SAVE_EVERY = 500
_SAVE_SECONDS = 60.0
_PSNR_STEPS = 24
_UPDATE_EVERY = 20

_outlives: ContextVar[bool] = ContextVar("outlives", default=False)
_unwritable: set[Path] = set()
"""Checkpoints whose last write failed, so that the warning is not repeated."""


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
    for index in track(indices, "Render held-out views"):
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


class FitCheckpointError(ValueError):
    """A checkpoint that is damaged or belongs to another fit."""


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
            checkpoint: file that is saved every 500 steps or every minute and on an interruption, and removed at the
                end; or None.
            progress: show a progress bar.

        Raises:
            FitCheckpointError: if the checkpoint is damaged or belongs to another fit.
        """
        if checkpoint is not None and checkpoint.is_file():
            self._load(checkpoint)
        with show_progress(progress), stage(self.title, self.steps) as bar, _InterruptAfterStep() as interrupt:
            bar.update(self.step)
            saved = time.monotonic()
            try:
                while self.step < self.steps:
                    self.one_step()
                    self.step += 1
                    interrupt.raise_if_requested()
                    if self.step % _UPDATE_EVERY == 0 or self.step == self.steps:
                        bar.update(self.step, f"{self.recent_psnr:.1f} dB, {self.count}")
                    is_due = self.step % _SAVE_EVERY == 0 or time.monotonic() - saved > _SAVE_SECONDS
                    if checkpoint is not None and is_due:
                        self._save(checkpoint)
                        saved = time.monotonic()
            except KeyboardInterrupt:
                if checkpoint is not None and not interrupt.within_step and self._save(checkpoint):
                    logger.info(
                        "The fit was interrupted after %d steps. The same command continues from %s.",
                        self.step,
                        checkpoint,
                    )
                raise
        if checkpoint is not None and _outlives.get():
            self._save(checkpoint)
        elif checkpoint is not None:
            checkpoint.unlink(missing_ok=True)

    def note_psnr(self, difference: Tensor) -> None:
        """Update the running PSNR with the color differences of one step."""
        psnr = float(-10 * difference.square().mean().clamp_min(1e-12).log10())
        weight = 1 / _PSNR_STEPS
        self.recent_psnr = (
            psnr if self.recent_psnr != self.recent_psnr else ((1 - weight) * self.recent_psnr + weight * psnr)
        )

    def _save(self, path: Path) -> bool:
        return save_or_warn(path, {"fingerprint": self.fingerprint, "step": self.step, **self.state()})

    def _load(self, path: Path) -> None:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can raise anything
            msg = (
                f"{path} should be the checkpoint of an interrupted fit, but cannot be read. Remove it to start again, "
                "or name another checkpoint."
            )
            raise FitCheckpointError(msg) from error
        if not isinstance(state, dict) or state.get("fingerprint") != self.fingerprint:
            msg = (
                f"The checkpoint {path} belongs to a fit of other images or with other settings. Remove it to start "
                "again, or name another checkpoint."
            )
            raise FitCheckpointError(msg)
        try:
            self.restore(state)
            self.step = state["step"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            msg = f"The checkpoint {path} is of another version of this fit. Remove it to start again."
            raise FitCheckpointError(msg) from error
        logger.info("The fit continues from step %d of the checkpoint %s.", self.step, path)


class _InterruptAfterStep:
    """Delays Ctrl-C to the end of a step, so that the saved state is that of a whole step; a second one acts at once.

    Attributes:
        within_step: whether a second Ctrl-C has interrupted a step, whose state cannot be saved.
    """

    def __init__(self) -> None:
        self.within_step = False
        self._requested = False
        self._previous: Any = None

    def __enter__(self) -> "_InterruptAfterStep":  # noqa: PYI034 - run-time checks of types refuse Self here
        previous = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(previous):
            self._previous = previous
            signal.signal(signal.SIGINT, self._request)
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            self.within_step = True
            self._previous(number, frame)
        self._requested = True

    def raise_if_requested(self) -> None:
        """Pass a delayed Ctrl-C on."""
        if self._requested:
            self._requested = False
            self._previous(signal.SIGINT, None)

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


@contextlib.contextmanager
def checkpoint_outlives_fit() -> Iterator[None]:
    """Keep the checkpoints of fits inside the block, in their last state, for the caller to replace or to remove."""
    token = _outlives.set(True)
    try:
        yield
    finally:
        _outlives.reset(token)


def save_or_warn(path: Path, content: dict[str, Any]) -> bool:
    """Write the checkpoint of a fit; if it cannot be written, warn once, because the fit itself can go on.

    Args:
        path: file to write.
        content: tensors in dicts and lists.

    Returns:
        Whether the file was written.
    """
    try:
        write_weights(path, content)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if path not in _unwritable:
            _unwritable.add(path)
            reason = str(error).splitlines()[0]
            logger.warning("The fit goes on, but cannot be continued later: %s cannot be written (%s).", path, reason)
        return False
    _unwritable.discard(path)
    return True
