# SPDX-License-Identifier: Apache-2.0
"""Constructor arguments that all scene models share, and the construction of their detector."""

import inspect
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from anomalib.metrics import Evaluator
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_pose.compare import ReferenceComparison, make_comparator
from anomalib_pose.compare.factory import ComparatorName
from anomalib_pose.models.components.fit_resume import AUTOMATIC
from anomalib_pose.models.components.pose_mixin import PoseMixin
from anomalib_pose.models.components.scene_detector import SceneDetector
from anomalib_pose.models.components.setting_checks import check_settings
from anomalib_pose.pose import MatcherName, RefinerName, make_estimator
from anomalib_pose.render.reflectance import reflectance

logger = logging.getLogger(__name__)


class SceneModelMixin(PoseMixin):
    """Shared signature of the scene models.

    A model declares its own arguments and those with another default, and passes all others on::

        class SplatPose(SceneModelMixin, MemoryBankMixin, AnomalibModule):
            def __init__(self, sh_degree: int = 2, refiner_steps: int = 175, **shared: Any) -> None:
                super().__init__(refiner_steps=refiner_steps, **shared)
                self.model = self.make_detector(GaussianScene(sh_degree))

    anomalib's command line, YAML files and checkpoints then know all arguments of the model. The name of each
    argument, its type, default and help text stand here once. ``inspect.signature`` of the class lists them too.

    Args:
        steps: optimizer steps of the fit.
        refiner: refinement of the camera. ``"gauss_newton"``: direct alignment of the images; ``"adam"``: as in
            SplatPose; ``"inerf"``: as in OmniposeAD; ``"reflectance"``: as in PIAD.
        refiner_steps: optimizer steps from each initial pose; ``"gauss_newton"`` ignores them. The papers of OmniposeAD
            and PIAD use 300, that of SplatPose 175.
        starts: number of initial poses, the most similar views of the bank. The papers use 1.
        bank_spacing: angle in degrees between the rendered views that fill the gaps between the training views.
        rolls: number of evenly spaced in-plane rotations of the initial poses. 1 suits photographs that are held like
            the training views, 12 photographs at any in-plane rotation.
        refine_focal: estimate the focal length of each query too, if it may be wrong by a few percent. Needs the
            refiner ``"gauss_newton"``. With an exact focal length, poses are better without this.
        matcher: network for feature matching with rendered views, for queries that direct alignment does not localize:
            ``"aliked"``, ``"xfeat"`` or ``"loftr"``; empty for none.
        matcher_weights: file with the weights of the matcher. They are never downloaded, and checkpoints do not contain
            them.
        comparator: comparison of query and reference. ``"calibrated"``: color, structure and features, normalized by
            the residuals of normal views, with a tolerance of one pixel; ``"illumination"``: reflectance, structure and
            features, normalized by the residuals of normal views and by the residual level of the query; ``"paper"``:
            as in OmniposeAD and SplatPose; ``"product"``: as in PIAD.
        backbone: timm name of the network whose features are compared. Empty for no network in ``"calibrated"`` and
            ``"illumination"``, which then need no weights, and for EfficientNet-B4 in ``"paper"`` and ``"product"``.
        weights_path: file with the weights of the backbone; empty for a single download by timm.
        second_backbone: timm name of a second network that is compared like the first, for example
            ``tf_efficientnet_lite0.in1k`` or the transformer ``vit_small_patch14_dinov2.lvd142m``; empty for none.
            EfficientNet-lite0 beside MobileNetV2 gained up to one point of image AUROC on real photographs, and none on
            brick models.
        second_weights_path: file with the weights of the second network; empty for a single download by timm.
        holdout_every: every n-th training view is held out from the fit, for calibration.
        surface_views: number of training views whose residuals are averaged on the surface of the object, to normalize
            the anomaly map there; 0 for none, as in the papers.
        memory_patches: number of patches of normal views in the patch memory, as in PatchCore. Queries with a
            low-confidence camera are compared with it. It gets a weight in all queries if it separates synthetic
            defects on held-out views better than the comparison with the reference does. Needs a backbone; 0 for none,
            as in the papers.
        fit_checkpoint: file from which an interrupted fit continues. ``"auto"``: a file beside the results, which the
            same command finds again, and which is removed when the model's checkpoint is saved. Empty for none.
        seed: seed of all random numbers.
        pre_processor: see ``AnomalibModule``. Resize in the datamodule instead, which scales the intrinsics too.
        post_processor: see ``AnomalibModule``.
        evaluator: see ``AnomalibModule``.
        visualizer: see ``AnomalibModule``.
        removed: arguments of earlier versions, which checkpoints still contain; see ``removed_arguments``.

    Raises:
        TypeError: if an argument is unknown.
        ValueError: if the value of an argument is not allowed.
    """

    removed_arguments: ClassVar[Mapping[str, Any]] = {"reflectance": False}
    """Arguments of earlier versions with their defaults. Checkpoints contain them, so they are accepted and ignored."""
    remove_ignored_hparams: Any
    hparams: Any

    def __init__(
        self,
        steps: int = 3000,
        refiner: RefinerName = "gauss_newton",
        refiner_steps: int = 300,
        starts: int = 3,
        bank_spacing: float = 8.0,
        rolls: int = 1,
        refine_focal: bool = False,
        matcher: MatcherName = "",
        matcher_weights: str = "",
        comparator: ComparatorName = "calibrated",
        backbone: str = "",
        weights_path: str = "",
        second_backbone: str = "",
        second_weights_path: str = "",
        holdout_every: int = 10,
        surface_views: int = 120,
        memory_patches: int = 1000,
        fit_checkpoint: str = AUTOMATIC,
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
        **removed: Any,
    ) -> None:
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self._ignore(removed)
        check_settings(self.hparams)
        self.steps = steps
        self.seed = seed
        self.fit_checkpoint_setting = fit_checkpoint
        self._estimator_arguments: dict[str, Any] = {
            "refiner": refiner,
            "steps": refiner_steps,
            "starts": starts,
            "seed": seed,
            "matcher": matcher,
            "matcher_weights": matcher_weights,
            "refine_focal": refine_focal,
        }
        self._comparator_arguments: dict[str, Any] = {
            "name": comparator,
            "backbone": backbone,
            "weights_path": weights_path,
            "second_backbone": second_backbone,
            "second_weights_path": second_weights_path,
        }
        self._detector_arguments: dict[str, Any] = {
            "bank_spacing": bank_spacing,
            "rolls": rolls,
            "holdout_every": holdout_every,
        }
        self._comparison_arguments: dict[str, Any] = {
            "surface_views": surface_views,
            "memory_patches": memory_patches,
            "seed": seed,
        }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class a signature of all arguments, its own first."""
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    def _ignore(self, removed: Mapping[str, Any]) -> None:
        """Leave removed arguments out of the hyperparameters; refuse all others."""
        model = type(self).__name__
        for name, value in removed.items():
            if name not in self.removed_arguments:
                msg = f"{model}.__init__() got an unexpected keyword argument {name!r}"
                raise TypeError(msg)
            if value != self.removed_arguments[name]:
                logger.warning("%s ignores %s=%r: this version has no such argument.", model, name, value)
        self.remove_ignored_hparams([*removed])

    def make_detector(
        self,
        scene: nn.Module,
        comparator_options: Mapping[str, Any] | None = None,
        comparison_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> SceneDetector:
        """Build the detector from the shared arguments.

        Args:
            scene: empty scene.
            comparator_options: further arguments of ``make_comparator``, or None.
            comparison_options: further arguments of ``ReferenceComparison``, or None.
            options: further arguments of ``SceneDetector``.

        Raises:
            ValueError: if the value of an argument is not allowed.
        """
        comparator = make_comparator(**self._comparator_arguments, **(comparator_options or {}))
        # Scene, pose and comparison use one decomposition: that of the comparison, or else the closed form.
        estimator = make_estimator(**self._estimator_arguments, decompose=comparator.reflectance or reflectance)
        comparison = ReferenceComparison(comparator, **self._comparison_arguments, **(comparison_options or {}))
        return SceneDetector(scene, estimator, comparison, **self._detector_arguments, **options)


def _signature(model_class: type) -> inspect.Signature:
    """Return the signature of a model, with the arguments that it passes on as keyword arguments."""
    parameters: dict[str, inspect.Parameter] = {}
    for owner in model_class.__mro__:
        if "__init__" in vars(owner):
            for name, parameter in [*inspect.signature(vars(owner)["__init__"]).parameters.items()][1:]:
                if parameter.kind is not parameter.VAR_KEYWORD and name not in parameters:
                    own = owner is model_class
                    parameters[name] = parameter if own else parameter.replace(kind=parameter.KEYWORD_ONLY)
        if owner is SceneModelMixin:
            break
    return inspect.Signature([*parameters.values()])
