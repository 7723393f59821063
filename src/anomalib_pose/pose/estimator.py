# SPDX-License-Identifier: Apache-2.0
"""Pose estimation of one query: initial poses from the view bank, refinement, confidence."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.geometry import Camera, scale_focal_lengths
from anomalib_pose.pose.agreement import OBJECT_ALPHA, measure_agreement
from anomalib_pose.pose.matching import FeatureLocalizer
from anomalib_pose.pose.types import PoseEstimate, Query, RefinementResult, Refiner
from anomalib_pose.pose.view_bank import ViewBank
from anomalib_pose.progress import stage
from anomalib_pose.scene import Scene

_RESIDUAL_TOLERANCE = 4.0  # multiple of the typical residual at which the factor `fit` of the confidence is 0.5
_MIN_TYPICAL_RESIDUAL = 0.02  # objects without texture have residuals so small that a stricter bound has no use
_MAX_TYPICAL_RESIDUAL = 0.15  # with larger residuals on normal views, right and wrong poses are indistinguishable
_ROBUST_ROUNDS = 2

QueryRelighting = Callable[[Query, Camera], Query]
"""Removes the light of a query: maps the query and its estimated camera to the query in the scene's light."""


class PoseEstimator(nn.Module):
    """Estimates the camera of a query: takes initial poses from a view bank, refines them, and rates the result.

    The confidence is ``overlap * fit``. ``overlap`` is the intersection over union of the rendered silhouette and the
    query's foreground, or 1 if the foreground is unknown. ``fit`` is ``1 / (1 + (residual / (4 typical))²)``. Here
    ``residual`` is ``structure_residual``, which changes little with the light. ``typical`` is its median on normal
    views, measured by ``calibrate``.

    A query is a low-confidence query if its estimate has a confidence below ``retry_below``. The estimator then tries,
    in this order: twice as many further initial poses of the bank, ``robust_refiner`` on the best hypothesis, and
    initial poses that ``feature_localizer`` computes from feature matches with the same views.

    Args:
        refiner: refines initial poses.
        starts: number of initial poses.
        retry_below: confidence below which the estimator tries further hypotheses.
        robust_refiner: refines the best hypothesis of a low-confidence query, or None.
        relighting_refiner: refines an estimate on the query in the scene's light, or None; see ``forward``.
        feature_localizer: computes initial poses of a low-confidence query from feature matches, or None. It is not
            part of the module's state.

    Raises:
        ValueError: if ``starts`` is below 1.
    """

    typical_residual: Tensor

    def __init__(
        self,
        refiner: Refiner,
        starts: int = 3,
        retry_below: float = 0.5,
        robust_refiner: Refiner | None = None,
        relighting_refiner: Refiner | None = None,
        feature_localizer: FeatureLocalizer | None = None,
    ) -> None:
        super().__init__()
        if starts < 1:
            msg = f"At least one start is needed, got starts={starts}."
            raise ValueError(msg)
        self.refiner = refiner
        self.starts = starts
        self.retry_below = retry_below
        self.robust_refiner = robust_refiner
        self.relighting_refiner = relighting_refiner
        self.feature_localizer = feature_localizer
        self.register_buffer("typical_residual", torch.tensor(0.1))

    def calibrate(self, residuals: Float[Tensor, " n"]) -> None:
        """Store the median residual of normal views at their poses as the typical residual, within bounds.

        Args:
            residuals: ``structure_residual`` of each view; if it is empty, the typical residual stays.
        """
        if len(residuals):
            typical = residuals.median().clamp(_MIN_TYPICAL_RESIDUAL, _MAX_TYPICAL_RESIDUAL)
            self.typical_residual = typical.to(self.typical_residual)

    def load(self) -> None:
        """Read the weights of the feature matcher, if there is one; see ``Matcher``."""
        if self.feature_localizer is not None:
            with stage("Load the feature matcher"):
                self.feature_localizer.matcher.load()

    def forward(
        self, scene: Scene, bank: ViewBank, query: Query, relight_query: QueryRelighting | None = None
    ) -> PoseEstimate:
        """Estimate the camera of one query.

        Args:
            scene: the fitted object.
            bank: the object's view bank.
            query: the image; a query without an object gives a low confidence.
            relight_query: maps the query and an estimated camera to the query in the scene's light. The estimate is
                refined and rated on this query before the estimator tries further hypotheses. Without a
                ``relighting_refiner``, as in the papers' recipes, the argument is ignored.
        """
        initial_poses, _ = bank.nearest(query, 3 * self.starts)
        first_estimate = self._refine(self.refiner, scene, query, initial_poses[: self.starts])
        if _has_no_object(query):
            return first_estimate
        estimate = self._refine_relighted(scene, query, first_estimate, relight_query)
        if max(first_estimate.confidence, estimate.confidence) >= self.retry_below:
            return estimate
        retried_estimate = self._try_further_hypotheses(scene, query, initial_poses, first_estimate)
        if relight_query is None or self.relighting_refiner is None:
            return retried_estimate
        retried_estimate = self._refine_relighted(scene, query, retried_estimate, relight_query)
        best_estimate = _more_confident(estimate, retried_estimate)
        # Both estimates count the renderings of `first_estimate`.
        return replace(best_estimate, n_renders=best_estimate.n_renders - first_estimate.n_renders)

    def _try_further_hypotheses(
        self, scene: Scene, query: Query, initial_poses: Tensor, estimate: PoseEstimate
    ) -> PoseEstimate:
        """Return the best of an estimate, further initial poses, the robust refiner and feature matching."""
        if len(initial_poses) > self.starts:
            further_estimate = self._refine(self.refiner, scene, query, initial_poses[self.starts :])
            estimate = _more_confident(estimate, further_estimate)
        estimate = self._refine_robustly(scene, query, estimate)
        if self.feature_localizer is None or estimate.confidence >= self.retry_below:
            return estimate
        matched_poses = self.feature_localizer(scene, query, initial_poses)
        estimate = replace(estimate, n_renders=estimate.n_renders + len(initial_poses))
        if not len(matched_poses):
            return estimate
        matched_estimate = self._refine(self.refiner, scene, query, matched_poses)
        return _more_confident(estimate, self._refine_robustly(scene, query, matched_estimate))

    def _refine_relighted(
        self, scene: Scene, query: Query, estimate: PoseEstimate, relight_query: QueryRelighting | None
    ) -> PoseEstimate:
        """Refine and rate an estimate on the query in the scene's light, if relighting is on."""
        if relight_query is None or self.relighting_refiner is None:
            return estimate
        camera = estimate.camera
        query = replace(relight_query(query, camera), K=camera.K)
        unchanged = RefinementResult(camera.camera_to_world, estimate.residual, estimate.converged, estimate.n_renders)
        # The old pose is rated on the relighted query too: its confidence on the original query may be too high.
        return self._improve(self.relighting_refiner, scene, query, self._rate(scene, query, unchanged))

    def _refine_robustly(self, scene: Scene, query: Query, estimate: PoseEstimate) -> PoseEstimate:
        """Apply the robust refiner, if there is one, as long as the confidence is low."""
        for _ in range(_ROBUST_ROUNDS):
            if self.robust_refiner is None or estimate.confidence >= self.retry_below:
                break
            estimate = self._improve(self.robust_refiner, scene, query, estimate)
        return estimate

    def _improve(self, refiner: Refiner, scene: Scene, query: Query, estimate: PoseEstimate) -> PoseEstimate:
        """Refine an estimate; return the more confident of the old and the refined one."""
        query = replace(query, K=estimate.camera.K)
        return _more_confident(estimate, self._refine(refiner, scene, query, estimate.camera.camera_to_world[None]))

    def _refine(self, refiner: Refiner, scene: Scene, query: Query, initial_poses: Tensor) -> PoseEstimate:
        """Refine initial poses and rate the best result."""
        return self._rate(scene, query, refiner(scene, query, initial_poses))

    def _rate(self, scene: Scene, query: Query, result: RefinementResult) -> PoseEstimate:
        """Render the scene at a refined pose and compute residual and confidence."""
        query = replace(query, K=scale_focal_lengths(query.K, result.focal_scale))
        residual, overlap = measure_agreement(scene, query, result.camera_to_world)
        fit = 1 / (1 + (residual / (_RESIDUAL_TOLERANCE * float(self.typical_residual))) ** 2)
        camera = query.camera_at(result.camera_to_world)
        return PoseEstimate(camera, residual, float(overlap * fit), result.converged, result.n_renders + 1)


def _more_confident(first: PoseEstimate, second: PoseEstimate) -> PoseEstimate:
    """Return the estimate of higher confidence, with the number of renderings of both."""
    best = second if second.confidence > first.confidence else first
    return replace(best, n_renders=first.n_renders + second.n_renders)


def _has_no_object(query: Query) -> bool:
    """Return whether the foreground is known and empty."""
    return query.foreground is not None and not bool((query.foreground > OBJECT_ALPHA).any())
