# SPDX-License-Identifier: Apache-2.0
"""Pose refinement by gradients through the rasteriser: the paper's."""

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import se3_exp
from anomalib_pose.pose.types import Query, Refinement
from anomalib_pose.render.ssim import ssim
from anomalib_pose.scene import Scene

_FIRST_RATE = 1e-3
_DECAY, _DECAY_STEPS = 0.8, 100


class AdamRefiner:
    """SplatPose's refinement (section 3.2): Adam on a screw (w, v, theta) with 0.8 L1 + 0.2 (1 - SSIM).

    The screw moves the camera about the object's centre: ``camera_to_world = exp(theta (v, w)) start``. The paper
    writes ``R = I + sin(theta) [w] + (1 - cos(theta)) [w]²``, which is a rotation only where ``w`` has length 1; here
    it is the true exponential, equal to first order. The first step has the rate 0.001, step k after it
    ``rate * 0.8^((k + 1) / 100)``.

    Args:
        steps: 175 in the paper's command line.
        rate: 0.01 in the paper.
        ssim_weight: 0.2 in the paper.
        seed: of the start of the screw, drawn from N(0, 1e-6²).
    """

    def __init__(self, steps: int = 175, rate: float = 0.01, ssim_weight: float = 0.2, seed: int = 0) -> None:
        self.steps = steps
        self.rate = rate
        self.ssim_weight = ssim_weight
        self.seed = seed

    def __call__(self, scene: Scene, query: Query, starts: Float[Tensor, "s 4 4"]) -> Refinement:
        """Refine every start and return the best end; see ``Refiner``."""
        ends = [self._refine(scene, query, start) for start in starts]
        best = min(ends, key=lambda end: end.cost)
        return Refinement(best.camera_to_world, best.cost, best.converged, sum(end.n_renders for end in ends))

    def _refine(self, scene: Scene, query: Query, start: Tensor) -> Refinement:
        generator = torch.Generator().manual_seed(self.seed)
        screw = (1e-6 * torch.randn(7, generator=generator)).to(start).requires_grad_()
        to_centre = torch.eye(4, dtype=start.dtype, device=start.device)
        to_centre[:3, 3] = -scene.centre.to(start)
        from_centre = torch.linalg.inv(to_centre)
        optimizer = torch.optim.Adam([screw], lr=_FIRST_RATE)
        best_pose, best_cost = start, float("inf")
        with torch.enable_grad():
            for step in range(self.steps):
                motion = se3_exp(screw[6] * torch.cat([screw[3:6], screw[:3]]))
                pose = from_centre @ motion @ to_centre @ start
                loss = self._loss(scene, query, pose)
                if loss.item() < best_cost:
                    best_pose, best_cost = pose.detach(), loss.item()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                optimizer.param_groups[0]["lr"] = self.rate * _DECAY ** ((step + 1) / _DECAY_STEPS)
        return Refinement(best_pose, best_cost, converged=False, n_renders=self.steps)

    def _loss(self, scene: Scene, query: Query, camera_to_world: Tensor) -> Tensor:
        rgb = scene.render(query.camera(camera_to_world), query.background).rgb
        target = query.image.permute(1, 2, 0).contiguous()
        loss = (1 - self.ssim_weight) * (rgb - target).abs().mean()
        return loss + self.ssim_weight * (1 - ssim(rgb, target)) if self.ssim_weight else loss
