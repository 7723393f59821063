# SPDX-License-Identifier: Apache-2.0
"""Pose refinement by gradients through the renderer: the papers'."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomalib_pose.geometry import se3_exp
from anomalib_pose.pose.types import Query, RefinementResult
from anomalib_pose.render.reflectance import Decomposition, reflectance, reflectance_of_color
from anomalib_pose.render.ssim import ssim
from anomalib_pose.scene import PixelScene, Scene, is_reflective

_DECAY, _DECAY_STEPS = 0.8, 100
_DILATIONS, _BOX = 3, 5

Loss = Callable[[Tensor], Tensor]
"""Loss of a camera-to-world pose (4, 4)."""


class ScrewRefiner(ABC):
    """Adam on a screw (w, v, theta) that moves the camera about the object's center.

    ``camera_to_world = exp(theta (v, w)) start``. The papers write ``R = I + sin(theta) [w] + (1 - cos(theta)) [w]²``
    and move about the world's origin, where their objects lie. Theirs is a rotation only where ``w`` has length 1; here
    it is the true exponential, equal to first order. Step k, from 1, has the rate ``rate * 0.8^(k / 100)``.

    Args:
        steps: of each start.
        rate: Adam's.
        first_rate: of the first step.
        seed: of the start of the screw, drawn from N(0, 1e-6²), and of what else is random.
    """

    def __init__(self, steps: int, rate: float, first_rate: float, seed: int) -> None:
        self.steps = steps
        self.rate = rate
        self.first_rate = first_rate
        self.seed = seed

    @abstractmethod
    def loss(self, scene: Scene, query: Query, generator: torch.Generator) -> Loss:
        """What is minimized for a query.

        Args:
            scene: the object.
            query: the image.
            generator: CPU generator of what is random in it.
        """

    def __call__(self, scene: Scene, query: Query, starts: Float[Tensor, "s 4 4"]) -> RefinementResult:
        """Refine every start and return the best end; see ``Refiner``."""
        ends = [self._refine(scene, query, start) for start in starts]
        best = min(ends, key=lambda end: end.cost)
        return RefinementResult(best.camera_to_world, best.cost, best.converged, sum(end.n_renders for end in ends))

    def _refine(self, scene: Scene, query: Query, start: Tensor) -> RefinementResult:
        generator = torch.Generator().manual_seed(self.seed)
        screw = (1e-6 * torch.randn(7, generator=generator)).to(start).requires_grad_()
        to_center = torch.eye(4, dtype=start.dtype, device=start.device)
        to_center[:3, 3] = -scene.center.to(start)
        from_center = torch.linalg.inv(to_center)
        optimizer = torch.optim.Adam([screw], lr=self.first_rate)
        best_pose, best_cost = start, float("inf")
        with torch.enable_grad():
            loss_of = self.loss(scene, query, generator)
            for step in range(self.steps):
                motion = se3_exp(screw[6] * torch.cat([screw[3:6], screw[:3]]))
                pose = from_center @ motion @ to_center @ start
                loss = loss_of(pose)
                if loss.item() < best_cost:
                    best_pose, best_cost = pose.detach(), loss.item()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                optimizer.param_groups[0]["lr"] = self.rate * _DECAY ** ((step + 1) / _DECAY_STEPS)
        return RefinementResult(best_pose, best_cost, converged=False, n_renders=self.steps)


class AdamRefiner(ScrewRefiner):
    """SplatPose's refinement (section 3.2): 0.8 L1 + 0.2 (1 - SSIM) of the whole image.

    Args:
        steps: 175 in the paper's command line.
        rate: 0.01 in the paper; the first step has 0.001.
        ssim_weight: 0.2 in the paper.
        seed: see ``ScrewRefiner``.
    """

    def __init__(self, steps: int = 175, rate: float = 0.01, ssim_weight: float = 0.2, seed: int = 0) -> None:
        super().__init__(steps, rate, 0.1 * rate, seed)
        self.ssim_weight = ssim_weight

    def loss(self, scene: Scene, query: Query, generator: torch.Generator) -> Loss:
        """Loss of the rendering of the whole image; see ``ScrewRefiner``."""
        del generator
        target = query.image.permute(1, 2, 0).contiguous()

        def of(camera_to_world: Tensor) -> Tensor:
            rgb = scene.render(query.camera_at(camera_to_world), query.background).rgb
            loss = (1 - self.ssim_weight) * (rgb - target).abs().mean()
            return loss + self.ssim_weight * (1 - ssim(rgb, target)) if self.ssim_weight else loss

        return of


class ReflectanceRefiner(ScrewRefiner):
    """PIAD's refinement (CVPR 2025): 0.6 L1 of the reflectance + 0.4 L1 of the image.

    A scene that was fitted with its reflectance renders that, as the paper's second scene does; the renderings of
    another are decomposed.

    Args:
        steps: 300 in the paper, 500 for its real objects.
        rate: 0.02 in the paper's configurations.
        reflectance_share: 0.6 in the paper.
        seed: see ``ScrewRefiner``.
        decompose: how images are decomposed, the same as in the fit.
    """

    def __init__(
        self,
        steps: int = 300,
        rate: float = 0.02,
        reflectance_share: float = 0.6,
        seed: int = 0,
        decompose: Decomposition = reflectance,
    ) -> None:
        super().__init__(steps, rate, rate, seed)
        self.reflectance_share = reflectance_share
        self.decompose = decompose

    def loss(self, scene: Scene, query: Query, generator: torch.Generator) -> Loss:
        """Loss of the rendering of the whole image in both domains; see ``ScrewRefiner``."""
        del generator
        image = query.image[None]
        reflected = self.decompose(image)
        background = query.background
        behind = reflectance_of_color(background, self.decompose)

        def of(camera_to_world: Tensor) -> Tensor:
            camera = query.camera_at(camera_to_world)
            rendered = scene.render(camera, background).rgb.permute(2, 0, 1)[None]
            if is_reflective(scene):
                inner = scene.render_reflectance(camera, behind).rgb.permute(2, 0, 1)[None]
            else:
                inner = self.decompose(rendered)
            away = (inner - reflected).abs().mean()
            return self.reflectance_share * away + (1 - self.reflectance_share) * (rendered - image).abs().mean()

        return of


class InerfRefiner(ScrewRefiner):
    """OmniposeAD's refinement (PAD, section 4; iNeRF, Yen-Chen et al. 2021): squared error of rays near key points.

    The rays of a step are drawn without replacement from the interest region: SIFT key points, dilated three times by a
    box of 5 pixels. A query with fewer pixels there than ``rays`` uses all of them, one without key points its
    foreground.

    Args:
        steps: 300 in the paper.
        rays: 3072 in the paper.
        rate: 0.01 in the paper.
        seed: see ``ScrewRefiner``.
    """

    def __init__(self, steps: int = 300, rays: int = 3072, rate: float = 0.01, seed: int = 0) -> None:
        super().__init__(steps, rate, rate, seed)
        self.rays = rays

    def loss(self, scene: Scene, query: Query, generator: torch.Generator) -> Loss:
        """Loss of random pixels of the interest region; see ``ScrewRefiner``.

        Raises:
            TypeError: if the scene cannot render single pixels.
        """
        if not isinstance(scene, PixelScene):
            msg = (
                f"The refiner 'inerf' draws single rays, which a {type(scene).__name__} has not; use 'gauss_newton' "
                "or 'adam'."
            )
            raise TypeError(msg)
        region = interest_region(query)
        target = query.image.flatten(1).T

        def of(camera_to_world: Tensor) -> Tensor:
            order = torch.randperm(len(region), generator=generator)[: self.rays]
            pixels = region[order.to(region.device)]
            rgb = scene.render_pixels(query.camera_at(camera_to_world), pixels, query.background)
            return (rgb - target[pixels]).square().mean()

        return of


def interest_region(query: Query) -> Int[Tensor, " n"]:
    """Pixels near SIFT key points, row by row; the foreground or all where there are none.

    Args:
        query: the image.
    """
    gray = (query.image.mean(0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    marks = np.zeros_like(gray)
    height, width = gray.shape
    for point in cv2.SIFT.create().detect(gray, None):
        column, row = round(point.pt[0]), round(point.pt[1])
        marks[min(row, height - 1), min(column, width - 1)] = 1
    marks = cv2.dilate(marks, np.ones((_BOX, _BOX), np.uint8), iterations=_DILATIONS)
    region = torch.from_numpy(marks).flatten().nonzero()[:, 0]
    if not len(region) and query.foreground is not None:
        region = query.foreground.flatten().nonzero()[:, 0]
    if not len(region):
        region = torch.arange(height * width)
    return region.to(query.image.device)
