# SPDX-License-Identifier: Apache-2.0
"""Direct alignment of a query with renderings of color and depth: damped Gauss-Newton, coarse to fine."""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera, pose_error, rigid_inverse, scale_focal_lengths, se3_exp
from anomalib_pose.pose.pyramid import central_differences, gaussian_blur, shrink
from anomalib_pose.pose.surface_alignment import OPAQUE, NormalEquations, RenderedSurface, linearize, rendered_surface
from anomalib_pose.pose.types import Query, RefinementResult
from anomalib_pose.scene import Scene, reduced_scene

_REJECTIONS = 4
_DAMPING = 1e-3
_SAME = 0.05  # radians, and share of the distance to the origin: a third of what lies between views of the bank
_ALIKE = 1.2  # times the lowest cost: on the far side of a car that looks alike it was a tenth higher
_SETTLED = {8: 0.2, 4: 0.2, 2: 0.1, 1: 0.02}  # pixels, by the divisor of the size: the next level goes on
_WORTH_A_STEP = 0.01  # share of the cost; what lowers it by less is left to the next rendering
# Pixels: smaller images hold too little for six degrees of freedom. From an eighth of the size a bank's view is near
# enough without, and in 25 pixels a missing part was seen to pull the camera out of the basin of the next level.
_COARSEST = {8: 48, 4: 24, 2: 24, 1: 0}
_REDESCENDS = 4  # divisor of the size; coarser levels mix what is missing with what is there
_FEW_GAUSSIANS = 4  # divisor of the size: what the Gaussians left out show is smaller than a pixel there
_FOCAL_FROM = 2  # divisor of the size; on coarser levels the focal length would take up what is wrong with the pose
_FOCAL_LIMIT = math.log(1.2)
_BLUR_OF_DIVISOR = {8: 2.0, 4: 1.0, 2: 0.7, 1: 0.0}


@dataclass
class _Level:
    """The query at one size, and the camera that renders there."""

    camera: Camera
    image: Tensor
    blur: float
    background: Tensor
    scene: Scene
    maps: Tensor
    redescends: bool
    refines_focal: bool
    settled: float
    n_renders: int = 0

    def render(self, view: "_View") -> tuple[Tensor, Tensor, Tensor]:
        """Blurred color over the background (3, H, W), depth and alpha (H, W)."""
        self.n_renders += 1
        camera = replace(self.camera.with_pose(view.camera_to_world), K=self.intrinsics(view))
        output = self.scene.render(camera, self.background)
        return gaussian_blur(output.rgb.permute(2, 0, 1), self.blur), output.depth, output.alpha

    def intrinsics(self, view: "_View") -> Tensor:
        """K (3, 3) at this size."""
        return scale_focal_lengths(self.camera.K, math.exp(view.log_focal))


@dataclass(frozen=True)
class _View:
    """A pose, and the logarithm of what the query's focal lengths are multiplied by."""

    camera_to_world: Tensor
    log_focal: float = 0.0


_End = tuple[_View, float, bool]
"""Where a start has led to, the cost there, and whether it stayed."""


@dataclass
class _State:
    """A view, what is seen there, and the cost."""

    view: _View
    rgb: Tensor
    depth: Tensor
    alpha: Tensor
    cost: float


class GaussNewtonRefiner:
    """Aligns the query with renderings of the scene at a changing pose.

    With the residual ``r(u) = rendering(u) - query(u)`` on the object's pixels and their surroundings, and a tangent
    ``xi`` in the camera's frame that moves the scene by ``exp(xi)``, the Jacobian is ``-grad I(u) d pi(p) / d xi``: the
    surface point ``p`` under ``u`` is known from the rendered depth, and ``grad I`` is the mean of the rendering's and
    the query's (second order accurate, Malis 2004). Charbonnier weights bound what a defect can pull. Needs forward
    renderings only.

    Args:
        iterations: most accepted steps a level of the pyramid.
        robust_scale: color difference above which a pixel's weight falls.
        tolerance: a level is finished when a step lowers the cost by less than this share and moves less than
            ``min_step``.
        min_step: in radians and in units of the distance to the object.
        steps_a_render: steps that a rendering is used for, moved by its depth, before the next one is made: it costs
            ten times as much as a step on small images. 1 for a rendering at each step.
        coarse_levels: levels that all starts are refined on, before the best ones go on.
        survivors: starts that go on to the finer levels, where no others have nearly as low a cost.
        max_size: longer side in pixels of the finest level.
        coarsest: divisor of the size on the coarsest level, 1, 2, 4 or 8: starts that are nearly right need none of 8.
        redescending: reject what differs much altogether (Geman and McClure 1987), instead of bounding its pull: holds
            on to what is left of an object with a large part missing, but finds home from nearby only.
        refine_focal: find one factor of both focal lengths too, which may be off by a few percent. It moves a pixel
            along its distance from the principal point; only perspective tells it from the distance to the object.
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
    def __call__(self, scene: Scene, query: Query, starts: Float[Tensor, "s 4 4"]) -> RefinementResult:
        """Refine the starts and return the best end; see ``Refiner``."""
        levels = self._levels(scene, query)
        ends = [(_View(start), float("inf"), False) for start in starts]
        for number, level in enumerate(levels):
            if number >= self.coarse_levels:
                ends = self._surviving(ends)
            ends = [self._descend(level, view) for view, _, _ in _distinct(ends)]
        view, cost, converged = min(ends, key=lambda end: end[1])
        renders = sum(level.n_renders for level in levels)
        return RefinementResult(view.camera_to_world, cost, converged, renders, math.exp(view.log_focal))

    def _surviving(self, ends: list[_End]) -> list[_End]:
        """The best ends, and those that are nearly as good: sides that look alike are told apart by finer levels."""
        ends = sorted(ends, key=lambda end: end[1])
        alike = sum(end[1] < _ALIKE * ends[0][1] for end in ends)
        return ends[: max(self.survivors, alike)]

    def _levels(self, scene: Scene, query: Query) -> list[_Level]:
        height, width = query.image.shape[-2:]
        finest = max(1.0, max(width, height) / self.max_size)
        full = query.camera_at(torch.eye(4, device=query.image.device))
        levels = []
        for divisor, blur in _BLUR_OF_DIVISOR.items():
            if divisor > self.coarsest or min(width, height) / finest / divisor < _COARSEST[divisor]:
                continue
            size = (max(1, round(width / finest / divisor)), max(1, round(height / finest / divisor)))
            image = gaussian_blur(shrink(query.image, *size), blur)
            maps = torch.cat([image, *central_differences(image)])
            redescends = self.redescending and divisor <= _REDESCENDS
            focal = self.refine_focal and divisor <= _FOCAL_FROM
            levels.append(
                _Level(
                    full.resized(*size),
                    image,
                    blur,
                    query.background,
                    reduced_scene(scene, small=divisor >= _FEW_GAUSSIANS),
                    maps,
                    redescends,
                    focal,
                    _SETTLED[divisor],
                )
            )
        return levels

    def _descend(self, level: _Level, view: _View) -> tuple[_View, float, bool]:
        state = self._look(level, view)
        damping, converged = _DAMPING, False
        for _ in range(self.iterations):
            surface = rendered_surface(state.rgb, state.depth, state.alpha, level.intrinsics(state.view))
            if surface is None:
                break
            found, damping, step = self._step(level, state, surface, damping)
            if found is None:
                converged = True
                break
            gain = (state.cost - found.cost) / max(state.cost, 1e-12)
            state = found
            if gain < self.tolerance and step < self.min_step:
                converged = True
                break
        return state.view, state.cost, converged

    def _look(self, level: _Level, view: _View) -> _State:
        rgb, depth, alpha = level.render(view)
        cost, _ = self._robust(level, rgb - level.image)
        return _State(view, rgb, depth, alpha, float(cost.mean()))

    def _robust(self, level: _Level, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Costs of residuals and the weights they get: Charbonnier's, or Geman and McClure's where ``redescends``."""
        scale = self.robust_scale
        squared = (residual / scale).square()
        if level.redescends:
            return scale**2 * 0.5 * squared / (1 + squared), 1 / (1 + squared).square()
        root = (1 + squared).sqrt()
        return scale**2 * (root - 1), 1 / root

    def _linearized(self, level: _Level, state: _State, surface: RenderedSurface, motion: Tensor) -> NormalEquations:
        intrinsics = level.intrinsics(state.view)
        robust = partial(self._robust, level)
        return linearize(surface, level.maps, intrinsics, motion, robust, focal=level.refines_focal)

    def _aligned(
        self, level: _Level, state: _State, surface: RenderedSurface, system: NormalEquations, damping: float
    ) -> tuple[Tensor, float]:
        """Motion (4, 4) of the surface that brings it nearer to the query, and by how many pixels it moves it."""
        motion = _not_moved(state)
        for _ in range(self.steps_a_render):
            tangent = _solved(system, damping)
            moved = se3_exp(tangent[:6]) @ motion
            if not bool(tangent.isfinite().all()):
                break
            following = self._linearized(level, state, surface, moved)
            gain = system.cost - following.cost
            if not gain > 0:
                if -gain < self.tolerance * system.cost:
                    break
                damping *= 8
                continue
            motion, system = moved, following
            if gain < _WORTH_A_STEP * system.cost:
                break
        return motion, system.shift

    def _step(
        self, level: _Level, state: _State, surface: RenderedSurface, damping: float
    ) -> tuple[_State | None, float, float]:
        """Next state, or None if nothing finds a lower cost; the damping for later; the size of the step."""
        system = self._linearized(level, state, surface, _not_moved(state))
        viewmat = rigid_inverse(state.view.camera_to_world.double())
        if self.steps_a_render > 1 and not level.refines_focal:
            motion, shift = self._aligned(level, state, surface, system, damping)
            if shift < level.settled:
                return None, damping, 0.0
            found = self._look(level, _View(rigid_inverse(motion @ viewmat).to(state.rgb), state.view.log_focal))
            if found.cost < state.cost:
                return found, max(damping / 6, 1e-6), shift / float(level.camera.K[0, 0])
            damping *= 8
        return self._damped_step(level, state, system, viewmat, damping)

    def _damped_step(
        self, level: _Level, state: _State, system: NormalEquations, viewmat: Tensor, damping: float
    ) -> tuple[_State | None, float, float]:
        """``_step`` by the rendering alone: with more and more damping."""
        opaque = state.depth[state.alpha > OPAQUE]
        distance = float(opaque.median()) if len(opaque) else 1.0
        for _ in range(_REJECTIONS):
            tangent = _solved(system, damping)
            if not bool(tangent.isfinite().all()):
                return None, damping, 0.0
            moved = rigid_inverse(se3_exp(tangent[:6]) @ viewmat).to(state.view.camera_to_world)
            log_focal = state.view.log_focal + float(tangent[6:].sum())  # none or one
            found = self._look(level, _View(moved, min(max(log_focal, -_FOCAL_LIMIT), _FOCAL_LIMIT)))
            if found.cost < state.cost:
                size = max(float(tangent[:3].abs().max()) / distance, float(tangent[3:].abs().max()))
                return found, max(damping / 6, 1e-6), size
            damping = min(damping * 8, 1e3)
        return None, damping, 0.0


def _distinct(ends: list[_End]) -> list[_End]:
    """Ends that are not where one of lower cost is already: from there both would go the same way."""
    kept: list[_End] = []
    for end in sorted(ends, key=lambda end: end[1]):
        pose = end[0].camera_to_world
        if all(_apart(pose, other.camera_to_world) for other, _, _ in kept):
            kept.append(end)
    return kept


def _apart(pose: Tensor, other: Tensor) -> bool:
    angle, center = pose_error(pose.double(), other.double())
    return float(angle) > _SAME or float(center) > _SAME * float(other[:3, 3].norm())


def _not_moved(state: _State) -> Tensor:
    return torch.eye(4, dtype=torch.float64, device=state.rgb.device)


def _solved(system: NormalEquations, damping: float) -> Tensor:
    """The damped step of a system."""
    diagonal = torch.diag(system.hessian.diagonal() + 1e-9)
    return -torch.linalg.solve(system.hessian + damping * diagonal, system.gradient)
