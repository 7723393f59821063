# SPDX-License-Identifier: Apache-2.0
"""Radiance fields of OmniposeAD and their fit."""

from pathlib import Path
from typing import Literal, get_args

from torch import Tensor, nn

from anomalib_pose.geometry import Camera
from anomalib_pose.scene import MlpFitSettings, MlpScene, VoxelFitSettings, VoxelScene, fit_mlp, fit_voxels

FieldName = Literal["grid", "mlp"]
"""Radiance fields: a sparse voxel grid, or the two networks of the paper."""
FIELDS: tuple[str, ...] = get_args(FieldName)


def make_field(name: FieldName | str) -> nn.Module:
    """Build the empty scene of a radiance field.

    Args:
        name: ``"grid"`` or ``"mlp"``.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in FIELDS:
        msg = f"field should be one of {', '.join(map(repr, FIELDS))}, got {name!r}."
        raise ValueError(msg)
    return VoxelScene() if name == "grid" else MlpScene()


class FieldFit:
    """Fit of a radiance field in place.

    Args:
        steps: number of optimizer steps.
        seed: seed of all random numbers.
        checkpoint: file from which an interrupted fit continues, or None.
        progress: show a progress bar.
    """

    def __init__(self, steps: int, seed: int, checkpoint: str | None, *, progress: bool) -> None:
        self.steps = steps
        self.seed = seed
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.progress = progress

    def __call__(
        self, scene: nn.Module, images: Tensor, cameras: Camera, foreground: Tensor | None, held_out: tuple[int, ...]
    ) -> float:
        """Fit the scene and return the PSNR on the held-out views in dB.

        Raises:
            TypeError: if the scene is not a radiance field.
        """
        if not isinstance(scene, VoxelScene | MlpScene):
            msg = f"A FieldFit fits a VoxelScene or an MlpScene, got a {type(scene).__name__}."
            raise TypeError(msg)
        views = (images, cameras, foreground)
        if isinstance(scene, VoxelScene):
            settings = VoxelFitSettings(steps=self.steps, seed=self.seed)
            fitted, psnr = fit_voxels(
                *views, settings, held_out=held_out, checkpoint=self.checkpoint, progress=self.progress
            )
            scene.load_state_dict(fitted.state_dict())
            return psnr
        schedule = MlpFitSettings(
            steps=self.steps, samples=scene.samples, fine_samples=scene.fine_samples, seed=self.seed
        )
        network, psnr = fit_mlp(*views, schedule, held_out=held_out, checkpoint=self.checkpoint, progress=self.progress)
        scene.load_state_dict(network.state_dict())
        return psnr
