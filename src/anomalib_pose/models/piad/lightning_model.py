# SPDX-License-Identifier: Apache-2.0
"""PIAD as an anomalib model."""

import dataclasses
from typing import Any

from anomalib.models.components import AnomalibModule, MemoryBankMixin

from anomalib_pose.compare.factory import ComparatorName
from anomalib_pose.models.components.gaussian_fit import GaussianFit
from anomalib_pose.models.components.scene_model import SceneModelMixin
from anomalib_pose.render.backend import RasterizerName
from anomalib_pose.render.reflectance import reflectance
from anomalib_pose.scene import FitSettings, GaussianScene
from anomalib_pose.scene.settings import FitRecipe

_WITH_REFLECTANCE = ("illumination", "product")


class PIAD(SceneModelMixin, MemoryBankMixin, AnomalibModule):
    """Pose- and illumination-agnostic anomaly detection (CVPR 2025): queries may have another light than the views.

    Gaussians are fitted to posed images of a normal object. The camera of a query is estimated by alignment with
    renderings. Query and reference are compared by reflectance as well as by appearance.
    ``configs/paper/piad_mip.yaml`` has the settings of the paper; the defaults are those of this package.
    ``SceneModelMixin`` documents the arguments that all scene models share.

    Args:
        recipe: ``"default"``: a fixed budget of Gaussians on the visual hull; ``"paper"``: 100k random points with
            densification, for which ``steps`` should be 30000 and ``sh_degree`` 3. The recipe ``"paper"`` also fits the
            reflectance, as three more channels of the same Gaussians; the paper fits a second scene to it. The refiner
            ``"reflectance"`` and comparisons without ``relight`` render these channels. They double the time of the
            fit, and change no measured score where references are relit.
        max_gaussians: largest number of Gaussians; the recipe ``"paper"`` ignores it.
        sh_degree: degree of the view-dependent color, 0 to 3. The paper uses 3; with 0, gloss looks like a defect.
        comparator: comparison of query and reference. ``"illumination"``: reflectance, structure and features,
            normalized by the residuals of normal views and by the residual level of the query; ``"product"``: as in
            the paper; ``"calibrated"``: the default of SplatPose; ``"paper"``: as in OmniposeAD and SplatPose.
        reflectance_weights_path: file of the published decomposition network; empty for the closed form.
        surface_strength: exponent of the surface normalization; SplatPose uses 1. Under another light, renderings have
            residuals in other places too.
        memory_patches: number of patches of normal views in the patch memory; SplatPose uses 1000. Under another light,
            every patch is far from those in the memory. 0 for none.
        relight: estimate the camera a second time on the relit query, and compare the query with relit references. The
            light is modeled as a low-frequency shading of the surface normals. The paper does not relight.
        rasterizer: ``"auto"``: gsplat where CUDA and gsplat are present, else the CPU; ``"cpu"``; ``"gsplat"``.
        shared: arguments of ``SceneModelMixin``.
    """

    def __init__(
        self,
        recipe: FitRecipe = "default",
        max_gaussians: int = 20_000,
        sh_degree: int = 2,
        comparator: ComparatorName = "illumination",
        reflectance_weights_path: str = "",
        surface_strength: float = 0.5,
        memory_patches: int = 0,
        relight: bool = True,
        rasterizer: RasterizerName = "auto",
        **shared: Any,
    ) -> None:
        super().__init__(comparator=comparator, memory_patches=memory_patches, **shared)
        self.fit_settings = FitSettings.of(recipe, self.steps, max_gaussians, sh_degree, self.seed)
        if recipe == "paper":
            self.fit_settings = dataclasses.replace(self.fit_settings, reflectance=True, initial_opacity=0.5)
        self.rasterizer = rasterizer
        options = {"reflectance_weights_path": reflectance_weights_path} if comparator in _WITH_REFLECTANCE else {}
        self.model = self.make_detector(
            GaussianScene(sh_degree, rasterizer), options, {"surface_strength": surface_strength, "relight": relight}
        )

    def fit_scene(self) -> GaussianFit:
        """Return the fit of the Gaussians, with the decomposition that the comparison uses."""
        return GaussianFit(
            self.fit_settings,
            self.fit_checkpoint,
            self.rasterizer,
            progress=self.shows_progress,
            decompose=self.model.comparison.comparator.reflectance or reflectance,
        )
