# SPDX-License-Identifier: Apache-2.0
"""The parts that make the pipeline of the scene models an OmniposeAD."""

from pathlib import Path

from torch import Tensor, nn

from anomalib_pose.geometry import Camera
from anomalib_pose.scene import MlpFitSettings, MlpScene, VoxelFitSettings, VoxelScene, fit_mlp, fit_voxels

FIELDS = ("grid", "mlp")


def make_field(name: str) -> nn.Module:
    """Empty scene of a radiance field.

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
    """Fits the detector's radiance field in place.

    Args:
        steps: of the fit.
        seed: of everything random.
        checkpoint: file that an interrupted fit continues from, or None.
        progress: show a bar.
    """

    def __init__(self, steps: int, seed: int, checkpoint: str | None, *, progress: bool) -> None:
        self.steps = steps
        self.seed = seed
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.progress = progress

    def __call__(
        self, scene: nn.Module, images: Tensor, cameras: Camera, foreground: Tensor | None, held_out: tuple[int, ...]
    ) -> float:
        """Fit and return the PSNR on the held-out views in dB.

        Raises:
            TypeError: if the scene is not a radiance field.
        """
        if not isinstance(scene, VoxelScene | MlpScene):
            msg = f"A FieldFit fits a VoxelScene or an MlpScene, got a {type(scene).__name__}."
            raise TypeError(msg)
        given = (images, cameras, foreground)
        if isinstance(scene, VoxelScene):
            settings = VoxelFitSettings(steps=self.steps, seed=self.seed)
            fitted, psnr = fit_voxels(
                *given, settings, held_out=held_out, checkpoint=self.checkpoint, progress=self.progress
            )
            scene.load_state_dict(fitted.state_dict())
            return psnr
        schedule = MlpFitSettings(
            steps=self.steps, samples=scene.samples, fine_samples=scene.fine_samples, seed=self.seed
        )
        network, psnr = fit_mlp(*given, schedule, held_out=held_out, checkpoint=self.checkpoint, progress=self.progress)
        scene.load_state_dict(network.state_dict())
        return psnr
