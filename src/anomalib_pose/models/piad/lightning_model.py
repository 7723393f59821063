# SPDX-License-Identifier: Apache-2.0
"""PIAD as an anomalib model: the parts, named."""

import dataclasses

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_pose.compare import Comparator, make_comparator
from anomalib_pose.models.components.gaussian_fit import GaussianFit
from anomalib_pose.models.components.pose_mixin import PoseMixin
from anomalib_pose.models.components.scene_detector import SceneDetector
from anomalib_pose.pose import make_estimator
from anomalib_pose.render.reflectance import Decomposition, reflectance
from anomalib_pose.scene import FitSettings, GaussianScene

_WITH_REFLECTANCE = ("illumination", "product")


class PIAD(PoseMixin, MemoryBankMixin, AnomalibModule):
    """Pose- and illumination-agnostic anomaly detection (CVPR 2025): queries may be lit otherwise than training views.

    Gaussians are fitted to posed images of a good object, the camera of a query is found by aligning it with
    renderings, and query and reference are compared by what they reflect as well as by how they look.
    ``configs/paper/piad_mip.yaml`` holds the paper's settings; the defaults are ours.

    Args:
        recipe: ``"default"``: a fixed budget of Gaussians on the visual hull; ``"paper"``: 100k random points with
            densification, for which ``steps`` should be 30000 and ``sh_degree`` 3.
        steps: optimizer steps of the fit.
        max_gaussians: largest number of Gaussians; not used by the paper's recipe.
        sh_degree: degree of the view-dependent color, 0 to 3; the paper uses 3; with 0 gloss looks like a defect.
        reflectance: fit what the object reflects as three more channels of the same Gaussians, to be rendered by the
            refiner ``"reflectance"`` and for comparisons without ``relight``; the paper fits a second scene to it. Off:
            it takes the fit twice the time, and was measured to change nothing where renderings are lit like the query.
        refiner: ``"gauss_newton"``: direct alignment; ``"reflectance"``: the paper's; ``"adam"``: SplatPose's.
        refiner_steps: steps of ``"reflectance"`` and ``"adam"`` a start; 300 in the paper.
        starts: views of the bank that the refinement starts from; the paper has one start.
        bank_spacing: angle in degrees between the rendered views that fill the gaps between the training views.
        rolls: turns of the camera about its optical axis, evenly spaced, that the search for a query starts from; 12
            find photographs at any angle, 1 those held like the training views.
        refine_focal: find the focal length of each query too, where it may be off by a few percent; for
            ``"gauss_newton"``. Where it is known, poses are better without.
        matcher: ``"aliked"``, ``"xfeat"`` or ``"loftr"``: queries that the alignment does not find are looked for by
            features, matched with rendered views; empty for none.
        matcher_weights: file with the matcher's weights; nothing is downloaded, and checkpoints do not hold them.
        comparator: ``"illumination"``: reflectance, structure and features, normalized by what good views show and by
            the query's own level; ``"product"``: the paper's; ``"calibrated"``: SplatPose's default; ``"paper"``.
        backbone: timm name of the network whose features are compared; empty for none in ``"illumination"``.
        weights_path: file with the backbone's weights; empty to let timm download them once.
        second_backbone: timm name of a second network that is compared like the first, a transformer such as
            ``vit_small_patch14_dinov2.lvd142m`` for example; empty for none.
        second_weights_path: file with its weights; empty to let timm download them once.
        reflectance_weights_path: file of the published decomposition network; empty for the closed form.
        holdout_every: every n-th training view is kept from the fit to calibrate with.
        surface_views: training views that tell the comparison what to expect of each place of the surface; 0 for none.
            The papers' comparisons do without.
        surface_strength: how far that is followed, as an exponent, 1 in SplatPose: in another light renderings fail
            elsewhere too.
        memory_patches: patches of good views that queries whose camera is doubtful are held against, 1000 in SplatPose;
            0 for none: in another light everything is far from what is remembered.
        relight: find the camera again in the query with its own light removed, a low-frequency shading of the surface's
            normals, and compare the query with renderings in that light; not in the paper.
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
        reflectance: bool = False,
        refiner: str = "gauss_newton",
        refiner_steps: int = 300,
        starts: int = 3,
        bank_spacing: float = 8.0,
        rolls: int = 1,
        refine_focal: bool = False,
        matcher: str = "",
        matcher_weights: str = "",
        comparator: str = "illumination",
        backbone: str = "",
        weights_path: str = "",
        second_backbone: str = "",
        second_weights_path: str = "",
        reflectance_weights_path: str = "",
        holdout_every: int = 10,
        surface_views: int = 120,
        surface_strength: float = 0.5,
        memory_patches: int = 0,
        relight: bool = True,
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
        settings = FitSettings.of(recipe, steps, max_gaussians, sh_degree, seed)
        self.fit_settings = dataclasses.replace(settings, reflectance=reflectance)
        if recipe == "paper":
            self.fit_settings = dataclasses.replace(self.fit_settings, initial_opacity=0.5)
        self.fit_checkpoint = fit_checkpoint or None
        self.rasterizer = rasterizer
        options = {"reflectance_weights_path": reflectance_weights_path} if comparator in _WITH_REFLECTANCE else {}
        compared = make_comparator(comparator, backbone, weights_path, second_backbone, second_weights_path, **options)
        self.model = SceneDetector(
            GaussianScene(sh_degree, rasterizer),
            make_estimator(
                refiner,
                refiner_steps,
                starts,
                seed,
                matcher,
                matcher_weights,
                refine_focal=refine_focal,
                decompose=_decomposition(compared),
            ),
            compared,
            bank_spacing=bank_spacing,
            rolls=rolls,
            holdout_every=holdout_every,
            surface_views=surface_views,
            surface_strength=surface_strength,
            memory_patches=memory_patches,
            seed=seed,
            relight=relight,
        )

    def fit_scene(self) -> GaussianFit:
        """How the scene is fitted."""
        return GaussianFit(
            self.fit_settings,
            self.fit_checkpoint,
            self.rasterizer,
            progress=self.shows_progress,
            decompose=_decomposition(self.model.comparator),
        )


def _decomposition(comparator: Comparator) -> Decomposition:
    """The comparison's own, so that scene, pose and comparison agree; the closed form where it has none."""
    return comparator.reflectance or reflectance
