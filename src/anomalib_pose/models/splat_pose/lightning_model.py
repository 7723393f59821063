# SPDX-License-Identifier: Apache-2.0
"""SplatPose as an anomalib model: the parts, named."""

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_pose.compare import make_comparator
from anomalib_pose.models.components.gaussian_fit import GaussianFit
from anomalib_pose.models.components.pose_mixin import PoseMixin
from anomalib_pose.models.components.scene_detector import SceneDetector
from anomalib_pose.pose import make_estimator
from anomalib_pose.scene import FitSettings, GaussianScene


class SplatPose(PoseMixin, MemoryBankMixin, AnomalibModule):
    """Pose-agnostic anomaly detection with 3D Gaussian splatting (Kruse et al., CVPR-W 2024).

    Gaussians are fitted to posed images of a good object. The camera of a query is found by direct alignment with
    renderings, starting from a bank of rendered views; the defect-free reference is rendered there and compared with
    the query. ``configs/paper/splatpose_mad.yaml`` holds the paper's settings; the defaults are ours.

    Args:
        recipe: ``"default"``: a fixed budget of Gaussians on the visual hull; ``"paper"``: 100k random points with
            densification, as in the paper, for which ``steps`` should be 30000.
        steps: optimizer steps of the fit; 3000 reach what the paper's 30000 do on objects of a hundred pixels or two.
        max_gaussians: largest number of Gaussians; not used by the paper's recipe.
        sh_degree: degree of the view-dependent color, 0 to 3; the paper uses 0; gloss then looks like a defect.
        refiner: ``"gauss_newton"``: direct alignment; ``"adam"``: the paper's.
        refiner_steps: steps of ``"adam"`` a start; 175 in the paper.
        starts: views of the bank that the refinement starts from; the paper has one start.
        bank_spacing: angle in degrees between the rendered views that fill the gaps between the training views.
        rolls: turns of the camera about its optical axis, evenly spaced, that the search for a query starts from; 12
            find photographs at any angle, 1 those held like the training views.
        refine_focal: find the focal length of each query too, where it may be off by a few percent; for
            ``"gauss_newton"``. Where it is known, poses are better without.
        matcher: ``"aliked"``, ``"xfeat"`` or ``"loftr"``: queries that the alignment does not find are looked for by
            features, matched with rendered views; empty for none.
        matcher_weights: file with the matcher's weights; nothing is downloaded, and checkpoints do not hold them.
        comparator: ``"calibrated"``: normalized by what good views show, tolerant to a pixel; ``"paper"``.
        backbone: timm name of the network whose features are compared; empty for color and structure alone, which
            needs no weights.
        weights_path: file with the backbone's weights; empty to let timm download them once.
        second_backbone: timm name of a second network that is compared like the first, a transformer such as
            ``vit_small_patch14_dinov2.lvd142m`` for example; empty for none.
        second_weights_path: file with its weights; empty to let timm download them once.
        holdout_every: every n-th training view is kept from the fit to calibrate with.
        surface_views: training views that tell the comparison what to expect of each place of the surface; 0 for none.
            The papers' comparisons do without.
        memory_patches: patches of good views that queries whose camera is doubtful are held against, as PatchCore does,
            and all queries where that tells artificial damage of held-out views better than the comparison does; needs
            a backbone; 0 for none, as in the paper.
        nearby_views: training views nearest to a camera, by what they show beyond their renderings references are
            corrected; checkpoints hold these views. 0 for none, as in the paper: a point less of image AUROC and AUPRO.
        rasterizer: ``"auto"``, ``"cpu"`` or ``"gsplat"``.
        fit_checkpoint: file from which an interrupted fit continues; empty for none.
        seed: of everything random.
        pre_processor: see ``AnomalibModule``. A resize belongs into the datamodule, which scales the intrinsics too.
        post_processor: see ``AnomalibModule``.
        evaluator: see ``AnomalibModule``.
        visualizer: see ``AnomalibModule``.
    """

    def __init__(
        self,
        recipe: str = "default",
        steps: int = 3000,
        max_gaussians: int = 20_000,
        sh_degree: int = 2,
        refiner: str = "gauss_newton",
        refiner_steps: int = 175,
        starts: int = 3,
        bank_spacing: float = 8.0,
        rolls: int = 1,
        refine_focal: bool = False,
        matcher: str = "",
        matcher_weights: str = "",
        comparator: str = "calibrated",
        backbone: str = "",
        weights_path: str = "",
        second_backbone: str = "",
        second_weights_path: str = "",
        holdout_every: int = 10,
        surface_views: int = 120,
        memory_patches: int = 1000,
        nearby_views: int = 3,
        rasterizer: str = "auto",
        fit_checkpoint: str = "",
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.fit_settings = FitSettings.of(recipe, steps, max_gaussians, sh_degree, seed)
        self.fit_checkpoint = fit_checkpoint or None
        self.rasterizer = rasterizer
        self.model = SceneDetector(
            GaussianScene(sh_degree, rasterizer),
            make_estimator(refiner, refiner_steps, starts, seed, matcher, matcher_weights, refine_focal=refine_focal),
            make_comparator(comparator, backbone, weights_path, second_backbone, second_weights_path),
            bank_spacing=bank_spacing,
            rolls=rolls,
            holdout_every=holdout_every,
            surface_views=surface_views,
            memory_patches=memory_patches,
            seed=seed,
            nearby_views=nearby_views,
        )

    def fit_scene(self) -> GaussianFit:
        """How the scene is fitted."""
        return GaussianFit(self.fit_settings, self.fit_checkpoint, self.rasterizer, progress=self.shows_progress)
