# SPDX-License-Identifier: Apache-2.0
"""The whole pose search of one query: bank, starts, refinement, confidence."""

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
from anomalib_pose.scene import Scene

_TOLERATED = 4.0
_LEAST_TYPICAL = 0.02  # objects without texture agree with themselves better than any threshold needs
_MOST_TYPICAL = 0.15  # renderings that agree less than this with good views do not tell a right pose from a wrong one
_POLISHES = 2

Change = Callable[[Query, Camera], Query]
"""A query as it would be in the light of the scene, for example, were it taken by a camera."""


class PoseEstimator(nn.Module):
    """Finds the camera of a query: nearest views of the bank, refined, the best kept, and judged.

    The confidence is ``overlap * fit``. ``overlap`` is the intersection over union of the rendered silhouette and the
    query's foreground, 1 where the foreground is unknown. ``fit`` is ``1 / (1 + (residual / (4 typical))²)``, with the
    residual of ``structure_residual``, which other light hardly changes, and its typical value measured by
    ``calibrate`` on normal views. If the first starts end below ``retry_below``, twice as
    many further views of the bank are tried, then ``robust_refiner`` on the best end, and then the poses that
    ``matched`` finds from features of the same views.

    Args:
        refiner: improves start poses.
        starts: views of the bank to start from.
        retry_below: confidence under which more is tried.
        robust_refiner: improves a doubtful end, or None.
        relighting_refiner: improves an estimate on a query that was changed after it, or None; see ``forward``.
        matched: finds other starts for a doubtful query, or None. It is no part of the state.
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
        """Take the median residual of normal views at their poses as typical, within bounds."""
        if len(residuals):
            self.typical_residual = residuals.median().clamp(_LEAST_TYPICAL, _MOST_TYPICAL).to(self.typical_residual)

    def load(self) -> None:
        """Look for the weights of the matcher, if there is one; see ``Matcher``."""
        if self.feature_localizer is not None:
            self.feature_localizer.matcher.load()

    def forward(self, scene: Scene, bank: ViewBank, query: Query, change: Change | None = None) -> PoseEstimate:
        """Estimate the camera of a query.

        Args:
            scene: the fitted object.
            bank: its view bank.
            query: the image; a query without an object gives a low confidence.
            change: of the query, once a camera is found: before more is tried, that is refined and judged on the query
                so changed. Without a relighting_refiner, as the papers' refiners are used, nothing is changed.
        """
        poses, _ = bank.nearest(query, 3 * self.starts)
        first = self._try(self.refiner, scene, query, poses[: self.starts])
        if _is_empty(query):
            return first
        best = self._finished(scene, query, first, change)
        if max(first.confidence, best.confidence) >= self.retry_below:
            return best
        found = self._insisted(scene, query, poses, first)
        if change is None or self.relighting_refiner is None:
            return found
        surest = _surer(best, self._finished(scene, query, found, change))
        return replace(surest, n_renders=surest.n_renders - first.n_renders)  # both began with it

    def _insisted(self, scene: Scene, query: Query, poses: Tensor, best: PoseEstimate) -> PoseEstimate:
        """A doubtful estimate, or what comes of more starts, the robust_refiner and the matcher if that is surer."""
        if len(poses) > self.starts:
            best = _surer(best, self._try(self.refiner, scene, query, poses[self.starts :]))
        best = self._polished(scene, query, best)
        if self.feature_localizer is None or best.confidence >= self.retry_below:
            return best
        starts = self.feature_localizer(scene, query, poses)
        best = replace(best, n_renders=best.n_renders + len(poses))
        if not len(starts):
            return best
        return _surer(best, self._polished(scene, query, self._try(self.refiner, scene, query, starts)))

    def _finished(self, scene: Scene, query: Query, estimate: PoseEstimate, change: Change | None) -> PoseEstimate:
        """An estimate, refined on the query as it is changed for it."""
        if change is None or self.relighting_refiner is None:
            return estimate
        camera = estimate.camera
        query = change(query, camera)
        found = RefinementResult(camera.camera_to_world, estimate.residual, estimate.converged, estimate.n_renders)
        # both are judged on the changed query: on the other one the estimate may look better than it is
        return self._improved(
            self.relighting_refiner, scene, query, self._judged(scene, replace(query, K=camera.K), found)
        )

    def _polished(self, scene: Scene, query: Query, best: PoseEstimate) -> PoseEstimate:
        """A doubtful estimate, or what the robust_refiner makes of it if that is surer."""
        for _ in range(_POLISHES):
            if self.robust_refiner is None or best.confidence >= self.retry_below:
                break
            best = self._improved(self.robust_refiner, scene, query, best)
        return best

    def _improved(self, refiner: Refiner, scene: Scene, query: Query, best: PoseEstimate) -> PoseEstimate:
        """An estimate, or what a refiner makes of it if that is surer."""
        here = replace(query, K=best.camera.K)
        return _surer(best, self._try(refiner, scene, here, best.camera.camera_to_world[None]))

    def _try(self, refiner: Refiner, scene: Scene, query: Query, starts: Tensor) -> PoseEstimate:
        return self._judged(scene, query, refiner(scene, query, starts))

    def _judged(self, scene: Scene, query: Query, found: RefinementResult) -> PoseEstimate:
        query = replace(query, K=scale_focal_lengths(query.K, found.focal_scale))
        camera = query.camera_at(found.camera_to_world)
        residual, overlap = measure_agreement(scene, query, found.camera_to_world)
        fit = 1 / (1 + (residual / (_TOLERATED * float(self.typical_residual))) ** 2)
        return PoseEstimate(camera, residual, float(overlap * fit), found.converged, found.n_renders + 1)


def _surer(first: PoseEstimate, second: PoseEstimate) -> PoseEstimate:
    """The estimate of higher confidence, with the renders of both."""
    best = second if second.confidence > first.confidence else first
    return replace(best, n_renders=first.n_renders + second.n_renders)


def _is_empty(query: Query) -> bool:
    return query.foreground is not None and not bool((query.foreground > OBJECT_ALPHA).any())
