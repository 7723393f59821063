# SPDX-License-Identifier: Apache-2.0
"""Small fitted models for tests."""

from pathlib import Path

import torch
from lightning import Trainer

from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.models import PIAD, SplatPose
from sample_scenes import make_toy

SIZE = 64
TRAINING = Camera.from_fov(view_sphere(40, 3.0, 1.2, -1.2), 0.7, SIZE, SIZE)


def make_fitted(model_class: type[SplatPose | PIAD] = SplatPose, **settings: object) -> SplatPose | PIAD:
    """Make a model with the toy's Gaussians on white, in the state after a fit."""
    model = model_class(bank_spacing=12.0, rasterizer="cpu", **{"sh_degree": 0, **settings})
    detector = model.model
    detector.scene.set_raw(make_toy().raw)
    detector.intrinsics = TRAINING.K[0].clone()
    detector.image_size = torch.tensor([SIZE, SIZE])
    detector.white_background = torch.tensor(data=True)
    detector.bank.build(detector.rendered, TRAINING)
    return model.eval()


def save_checkpoint(model: SplatPose | PIAD, path: Path) -> Path:
    """Save a checkpoint with Lightning."""
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    return path
