# SPDX-License-Identifier: Apache-2.0
"""A sixth scene model, as another package would write it."""

from typing import Any

from anomalib.models.components import AnomalibModule, MemoryBankMixin

from anomalib_pose.models.components.gaussian_fit import GaussianFit
from anomalib_pose.models.components.scene_model import SceneModelMixin
from anomalib_pose.scene import FitSettings, GaussianScene


class ToySplat(SceneModelMixin, MemoryBankMixin, AnomalibModule):
    """Gaussians of one color each.

    Args:
        budget: largest number of Gaussians.
        starts: number of initial poses.
        shared: arguments of ``SceneModelMixin``.
    """

    def __init__(self, budget: int = 100, starts: int = 1, **shared: Any) -> None:
        super().__init__(starts=starts, **shared)
        self.fit_settings = FitSettings.of("default", self.steps, budget, 0, self.seed)
        self.model = self.make_detector(GaussianScene(0, "cpu"))

    def fit_scene(self) -> GaussianFit:
        """Return the fit of the Gaussians."""
        return GaussianFit(self.fit_settings, self.fit_checkpoint, "cpu", progress=self.shows_progress)
