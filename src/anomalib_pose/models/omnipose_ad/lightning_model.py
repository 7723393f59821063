# SPDX-License-Identifier: Apache-2.0
"""OmniposeAD as an anomalib model."""

from typing import Any

from anomalib.models.components import AnomalibModule, MemoryBankMixin

from anomalib_pose.models.components.scene_model import SceneModelMixin
from anomalib_pose.models.omnipose_ad.torch_model import FieldFit, FieldName, make_field


class OmniposeAD(SceneModelMixin, MemoryBankMixin, AnomalibModule):
    """Pose-agnostic anomaly detection with a radiance field (Zhou et al., PAD, NeurIPS 2023).

    A radiance field is fitted to posed images of a normal object. The camera of a query is estimated from the most
    similar rendered views. The defect-free reference is rendered from this camera and compared with the query.
    ``configs/paper/omniposead_mad.yaml`` has the settings of the paper; the defaults are those of this package.
    ``SceneModelMixin`` documents the arguments that all scene models share.

    Args:
        field: ``"grid"``: density and color on a sparse grid, fitted in minutes; ``"mlp"``: the two networks of the
            paper, for which ``steps`` should be 200000, on a GPU.
        nearby_views: number of training views near a camera whose residual images correct the rendered reference. The
            grid is softer than the views, and its colors do not depend on the direction. Regions that no view supports,
            for example fog along a wall, get a smaller weight. Checkpoints contain these views. 0 for none, as in the
            paper; with ``"mlp"``, all training views would have to be rendered.
        shared: arguments of ``SceneModelMixin``.
    """

    def __init__(self, field: FieldName = "grid", nearby_views: int = 3, **shared: Any) -> None:
        super().__init__(**shared)
        self.model = self.make_detector(make_field(field), nearby_views=nearby_views, check_support=True)

    def fit_scene(self) -> FieldFit:
        """Return the fit of the radiance field."""
        return FieldFit(self.steps, self.seed, self.fit_checkpoint, progress=self.shows_progress)
