# SPDX-License-Identifier: Apache-2.0
"""OmniposeAD as an anomalib model: the parts, named."""

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_pose.compare import make_comparator
from anomalib_pose.models.components.pose_mixin import PoseMixin
from anomalib_pose.models.components.scene_detector import SceneDetector
from anomalib_pose.models.omnipose_ad.torch_model import FieldFit, make_field
from anomalib_pose.pose import make_estimator


class OmniposeAD(PoseMixin, MemoryBankMixin, AnomalibModule):
    """Pose-agnostic anomaly detection with a radiance field (Zhou et al., PAD, NeurIPS 2023).

    A radiance field is fitted to posed images of a good object. The camera of a query is found from the most similar
    rendered views; the defect-free reference is rendered there and compared with the query.
    ``configs/paper/omniposead_mad.yaml`` holds the paper's settings; the defaults are ours.

    Args:
        field: ``"grid"``: density and color on a sparse grid, fitted in minutes; ``"mlp"``: the paper's two
            networks, for which ``steps`` should be 200000 and a GPU at hand.
        steps: optimizer steps of the fit.
        refiner: ``"gauss_newton"``: direct alignment; ``"inerf"``: the paper's; ``"adam"``: SplatPose's.
        refiner_steps: steps of ``"inerf"`` and ``"adam"`` a start; 300 in the paper.
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
        nearby_views: training views nearest to a camera, by what they show beyond the field's renderings references are
            corrected: the grid is softer than they are, and its colors do not depend on the direction. What none of
            them confirms, fog along a wall for example, counts less. Checkpoints hold these views. 0 for none, as in
            the paper; for ``"mlp"`` all of them would have to be rendered.
        fit_checkpoint: file from which an interrupted fit continues; empty for none.
        seed: of everything random.
        pre_processor: see ``AnomalibModule``. A resize belongs into the datamodule, which scales the intrinsics too.
        post_processor: see ``AnomalibModule``.
        evaluator: see ``AnomalibModule``.
        visualizer: see ``AnomalibModule``.
    """

    def __init__(
        self,
        field: str = "grid",
        steps: int = 3000,
        refiner: str = "gauss_newton",
        refiner_steps: int = 300,
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
        self.steps = steps
        self.seed = seed
        self.fit_checkpoint = fit_checkpoint or None
        self.model = SceneDetector(
            make_field(field),
            make_estimator(refiner, refiner_steps, starts, seed, matcher, matcher_weights, refine_focal=refine_focal),
            make_comparator(comparator, backbone, weights_path, second_backbone, second_weights_path),
            bank_spacing=bank_spacing,
            rolls=rolls,
            holdout_every=holdout_every,
            surface_views=surface_views,
            memory_patches=memory_patches,
            seed=seed,
            nearby_views=nearby_views,
            doubt_unconfirmed=True,
        )

    def fit_scene(self) -> FieldFit:
        """How the scene is fitted."""
        return FieldFit(self.steps, self.seed, self.fit_checkpoint, progress=self.shows_progress)
