# SPDX-License-Identifier: Apache-2.0
"""SplatPose as an anomalib model."""

from typing import Any

from anomalib.models.components import AnomalibModule, MemoryBankMixin

from anomalib_pose.models.components.gaussian_fit import GaussianFit
from anomalib_pose.models.components.scene_model import SceneModelMixin
from anomalib_pose.render.backend import RasterizerName
from anomalib_pose.scene import FitSettings, GaussianScene
from anomalib_pose.scene.settings import FitRecipe


class SplatPose(SceneModelMixin, MemoryBankMixin, AnomalibModule):
    """Pose-agnostic anomaly detection with 3D Gaussian splatting (Kruse et al., CVPR-W 2024).

    Gaussians are fitted to posed images of a normal object. The camera of a query is estimated by direct alignment with
    renderings, from initial poses in a bank of rendered views. The defect-free reference is rendered from this camera
    and compared with the query. ``configs/paper/splatpose_mad.yaml`` has the settings of the paper; the defaults are
    those of this package. ``SceneModelMixin`` documents the arguments that all scene models share.

    Args:
        recipe: ``"default"``: a fixed budget of Gaussians on the visual hull. On objects of 100 to 200 pixels, 3000
            steps are as good as the 30000 steps of the paper. ``"paper"``: 100k random points with densification, for
            which ``steps`` should be 30000.
        max_gaussians: largest number of Gaussians; the recipe ``"paper"`` ignores it.
        sh_degree: degree of the view-dependent color, 0 to 3. The paper uses 0; gloss then looks like a defect.
        refiner_steps: optimizer steps from each initial pose; ``"gauss_newton"`` ignores them. The paper uses 175.
        nearby_views: number of training views near a camera whose residual images correct the rendered reference.
            Checkpoints contain these views. 0 for none, as in the paper, costs one point of image AUROC and of AUPRO.
        rasterizer: ``"auto"``: gsplat where CUDA and gsplat are present, else the CPU; ``"cpu"``; ``"gsplat"``.
        shared: arguments of ``SceneModelMixin``.
    """

    def __init__(
        self,
        recipe: FitRecipe = "default",
        max_gaussians: int = 20_000,
        sh_degree: int = 2,
        refiner_steps: int = 175,
        nearby_views: int = 3,
        rasterizer: RasterizerName = "auto",
        **shared: Any,
    ) -> None:
        super().__init__(refiner_steps=refiner_steps, **shared)
        self.fit_settings = FitSettings.of(recipe, self.steps, max_gaussians, sh_degree, self.seed)
        self.rasterizer = rasterizer
        self.model = self.make_detector(GaussianScene(sh_degree, rasterizer), nearby_views=nearby_views)

    def fit_scene(self) -> GaussianFit:
        """Return the fit of the Gaussians."""
        return GaussianFit(self.fit_settings, self.fit_checkpoint, self.rasterizer, progress=self.shows_progress)
