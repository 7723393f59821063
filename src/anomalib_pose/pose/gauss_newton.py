# SPDX-License-Identifier: Apache-2.0
"""Direct alignment of a query with renderings of color and depth: damped Gauss-Newton, coarse to fine."""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import pose_error, rigid_inverse, se3_exp
from anomalib_pose.pose.pyramid_levels import CameraEstimate, PyramidLevel, build_levels
from anomalib_pose.pose.surface_alignment import OPAQUE, NormalEquations, RenderedSurface, linearize, rendered_surface
from anomalib_pose.pose.types import Query, RefinementResult
from anomalib_pose.scene import Scene

_MAX_REJECTIONS = 4
_INITIAL_DAMPING = 1e-3
_DUPLICATE_DISTANCE = 0.05  # radians, and fraction of the distance to the origin: a third of the bank's view spacing
_AMBIGUITY_RATIO = 1.2  # multiple of the lowest cost; the look-alike far side of a car had a cost a tenth higher
_MIN_GAIN = 0.01  # fraction of the cost; after a step with a smaller gain the scene is rendered again
_MAX_LOG_FOCAL = math.log(1.2)


class _Candidate(NamedTuple):
    """A camera estimate at the end of a level, its cost there, and whether the level converged."""

    camera: CameraEstimate
    cost: float
    converged: bool


class _StepResult(NamedTuple):
    """Result of one Gauss-Newton step.

    ``rendering`` is None if no step lowers the cost. ``size`` is the step's length, see ``min_step``.
    """

    rendering: "_LevelRendering | None"
    damping: float
    size: float


@dataclass
class _LevelRendering:
    """Rendering of one level at a camera estimate, and its mean robust cost."""

    camera: CameraEstimate
    rgb: Tensor
    depth: Tensor
    alpha: Tensor
    cost: float


class GaussNewtonRefiner:
    """Aligns renderings of the scene with the query by Gauss-Newton steps on the camera pose.

    The residual is ``r(u) = rendering(u) - query(u)`` on the object's pixels and a margin around them. A tangent ``xi``
    in the camera's frame moves the scene by ``exp(xi)``. The Jacobian is ``-grad I(u) d pi(p) / d xi``. The surface
    point ``p`` at pixel ``u`` comes from the rendered depth. ``grad I`` is the mean of the rendering's and the query's
    gradient, which is second-order accurate (Malis 2004). Charbonnier weights limit the influence of a defect. The
    refiner needs forward renderings only.

    Args:
        iterations: largest number of accepted steps per level of the pyramid.
        robust_scale: color difference above which the weight of a pixel falls.
        tolerance: a level ends when a step lowers the cost by less than this fraction and is smaller than
            ``min_step``.
        min_step: in radians, and in units of the distance to the object.
        coarse_levels: number of levels on which all initial poses are refined, before the best candidates continue.
        survivors: number of candidates that continue on the finer levels; candidates of nearly the lowest cost continue
            in addition.
        max_size: longer side in pixels of the finest level.
        coarsest: divisor of the size on the coarsest level, 1, 2, 4 or 8; initial poses close to the truth do not need
            8.
        steps_a_render: number of steps that reuse one rendering; the steps move its surface points. On small images a
            rendering takes ten times as long as a step. With 1, each step renders.
        redescending: reject pixels with large residuals (Geman and McClure 1987) instead of limiting their influence.
            This handles an object with a large missing part, but converges from nearby poses only.
        refine_focal: also estimate one factor on both focal lengths, which may be off by a few percent. The factor
            moves a pixel along its distance from the principal point; only perspective separates it from the distance
            to the object.
    """

    def __init__(
        self,
        iterations: int = 6,
        robust_scale: float = 0.1,
        tolerance: float = 5e-4,
        min_step: float = 2e-4,
        coarse_levels: int = 2,
        survivors: int = 1,
        max_size: int = 400,
        coarsest: int = 8,
        steps_a_render: int = 8,
        *,
        redescending: bool = False,
        refine_focal: bool = False,
    ) -> None:
        self.iterations = iterations
        self.robust_scale = robust_scale
        self.tolerance = tolerance
        self.min_step = min_step
        self.coarse_levels = coarse_levels
        self.survivors = survivors
        self.max_size = max_size
        self.coarsest = coarsest
        self.steps_a_render = steps_a_render
        self.redescending = redescending
        self.refine_focal = refine_focal

    @torch.no_grad()
    def __call__(self, scene: Scene, query: Query, initial_poses: Float[Tensor, "s 4 4"]) -> RefinementResult:
        """Refine initial poses and return the best result; see ``Refiner``."""
        levels = self._levels(scene, query)
        candidates = [_Candidate(CameraEstimate(pose), float("inf"), converged=False) for pose in initial_poses]
        for number, level in enumerate(levels):
            if number >= self.coarse_levels:
                candidates = self._select_survivors(candidates)
            candidates = [
                self._refine_on_level(level, candidate.camera) for candidate in _without_duplicates(candidates)
            ]
        camera, cost, converged = min(candidates, key=lambda candidate: candidate.cost)
        renders = sum(level.n_renders for level in levels)
        return RefinementResult(camera.camera_to_world, cost, converged, renders, math.exp(camera.log_focal))

    def _select_survivors(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Select the candidates for the finer levels.

        Candidates of nearly the lowest cost continue: only finer levels distinguish look-alike sides of an object.
        """
        candidates = sorted(candidates, key=lambda candidate: candidate.cost)
        ambiguous = sum(candidate.cost < _AMBIGUITY_RATIO * candidates[0].cost for candidate in candidates)
        return candidates[: max(self.survivors, ambiguous)]

    def _levels(self, scene: Scene, query: Query) -> list[PyramidLevel]:
        options = {"redescending": self.redescending, "refine_focal": self.refine_focal}
        return build_levels(scene, query, self.max_size, self.coarsest, **options)

    def _refine_on_level(self, level: PyramidLevel, camera: CameraEstimate) -> _Candidate:
        """Take Gauss-Newton steps on one level."""
        rendering = self._render(level, camera)
        damping, converged = _INITIAL_DAMPING, False
        for _ in range(self.iterations):
            intrinsics = level.intrinsics(rendering.camera)
            surface = rendered_surface(rendering.rgb, rendering.depth, rendering.alpha, intrinsics)
            if surface is None:
                break
            next_rendering, damping, step_size = self._step(level, rendering, surface, damping)
            if next_rendering is None:
                converged = True
                break
            gain = (rendering.cost - next_rendering.cost) / max(rendering.cost, 1e-12)
            rendering = next_rendering
            if gain < self.tolerance and step_size < self.min_step:
                converged = True
                break
        return _Candidate(rendering.camera, rendering.cost, converged)

    def _render(self, level: PyramidLevel, camera: CameraEstimate) -> _LevelRendering:
        """Render one level at a camera estimate and compute the cost."""
        rgb, depth, alpha = level.render(camera)
        costs, _ = self._robust_cost(level, rgb - level.image)
        return _LevelRendering(camera, rgb, depth, alpha, float(costs.mean()))

    def _robust_cost(self, level: PyramidLevel, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return costs and weights of residuals: Charbonnier's, or Geman and McClure's on a redescending level."""
        scale = self.robust_scale
        squared = (residual / scale).square()
        if level.redescends:
            return scale**2 * 0.5 * squared / (1 + squared), 1 / (1 + squared).square()
        root = (1 + squared).sqrt()
        return scale**2 * (root - 1), 1 / root

    def _linearize(
        self, level: PyramidLevel, rendering: _LevelRendering, surface: RenderedSurface, motion: Tensor
    ) -> NormalEquations:
        """Build the Gauss-Newton system of a level's query and a moved surface."""
        intrinsics = level.intrinsics(rendering.camera)
        robust_cost = partial(self._robust_cost, level)
        return linearize(surface, level.maps, intrinsics, motion, robust_cost, focal=level.refines_focal)

    def _step(
        self, level: PyramidLevel, rendering: _LevelRendering, surface: RenderedSurface, damping: float
    ) -> _StepResult:
        """Take one step: several motions of the rendered surface, or one damped step if they raise the cost."""
        system = self._linearize(level, rendering, surface, _no_motion(rendering))
        viewmat = rigid_inverse(rendering.camera.camera_to_world.double())
        if self.steps_a_render > 1 and not level.refines_focal:
            motion, shift = self._align_surface(level, rendering, surface, system, damping)
            if shift < level.settled_shift:
                return _StepResult(None, damping, 0.0)
            pose = rigid_inverse(motion @ viewmat).to(rendering.rgb)
            next_rendering = self._render(level, CameraEstimate(pose, rendering.camera.log_focal))
            if next_rendering.cost < rendering.cost:
                return _StepResult(next_rendering, max(damping / 6, 1e-6), shift / float(level.camera.K[0, 0]))
            damping *= 8
        return self._damped_step(level, rendering, system, viewmat, damping)

    def _align_surface(
        self,
        level: PyramidLevel,
        rendering: _LevelRendering,
        surface: RenderedSurface,
        system: NormalEquations,
        damping: float,
    ) -> tuple[Tensor, float]:
        """Align the rendered surface with the query; return its motion (4, 4) and its mean shift in pixels."""
        motion = _no_motion(rendering)
        for _ in range(self.steps_a_render):
            tangent = _solve(system, damping)
            next_motion = se3_exp(tangent[:6]) @ motion
            if not bool(tangent.isfinite().all()):
                break
            next_system = self._linearize(level, rendering, surface, next_motion)
            gain = system.cost - next_system.cost
            if not gain > 0:
                if -gain < self.tolerance * system.cost:
                    break
                damping *= 8
                continue
            motion, system = next_motion, next_system
            if gain < _MIN_GAIN * system.cost:
                break
        return motion, system.shift

    def _damped_step(
        self, level: PyramidLevel, rendering: _LevelRendering, system: NormalEquations, viewmat: Tensor, damping: float
    ) -> _StepResult:
        """Render after one step, and raise the damping until the cost falls."""
        opaque = rendering.depth[rendering.alpha > OPAQUE]
        distance = float(opaque.median()) if len(opaque) else 1.0
        for _ in range(_MAX_REJECTIONS):
            tangent = _solve(system, damping)
            if not bool(tangent.isfinite().all()):
                return _StepResult(None, damping, 0.0)
            pose = rigid_inverse(se3_exp(tangent[:6]) @ viewmat).to(rendering.camera.camera_to_world)
            log_focal = rendering.camera.log_focal + float(tangent[6:].sum())  # tangent[6:] has no element or one
            log_focal = min(max(log_focal, -_MAX_LOG_FOCAL), _MAX_LOG_FOCAL)
            next_rendering = self._render(level, CameraEstimate(pose, log_focal))
            if next_rendering.cost < rendering.cost:
                size = max(float(tangent[:3].abs().max()) / distance, float(tangent[3:].abs().max()))
                return _StepResult(next_rendering, max(damping / 6, 1e-6), size)
            damping = min(damping * 8, 1e3)
        return _StepResult(None, damping, 0.0)


def _without_duplicates(candidates: list[_Candidate]) -> list[_Candidate]:
    """Drop each candidate near one of lower cost: both would converge to the same pose."""
    distinct: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: candidate.cost):
        pose = candidate.camera.camera_to_world
        if all(_are_distinct(pose, other.camera.camera_to_world) for other in distinct):
            distinct.append(candidate)
    return distinct


def _are_distinct(pose: Tensor, other: Tensor) -> bool:
    angle, distance = pose_error(pose.double(), other.double())
    return float(angle) > _DUPLICATE_DISTANCE or float(distance) > _DUPLICATE_DISTANCE * float(other[:3, 3].norm())


def _no_motion(rendering: _LevelRendering) -> Tensor:
    return torch.eye(4, dtype=torch.float64, device=rendering.rgb.device)


def _solve(system: NormalEquations, damping: float) -> Tensor:
    """Solve the damped normal equations for the tangent (k,)."""
    diagonal = torch.diag(system.hessian.diagonal() + 1e-9)
    return -torch.linalg.solve(system.hessian + damping * diagonal, system.gradient)
