# SPDX-License-Identifier: Apache-2.0
"""The papers' pose refiners: Adam on a screw motion, with gradients through the renderer."""

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
_DILATIONS, _BOX_SIZE = 3, 5

PoseLoss = Callable[[Tensor], Tensor]
"""Maps a camera-to-world pose (4, 4) to a scalar loss."""


class ScrewRefiner(ABC):
    """Refines a pose with Adam on a screw (w, v, theta) that moves the camera about the object's center.

    ``camera_to_world = exp(theta (v, w)) initial_pose``. The papers write
    ``R = I + sin(theta) [w] + (1 - cos(theta)) [w]²`` and move the camera about the world's origin, where the papers'
    objects lie. The papers' ``R`` is a rotation only if ``w`` has length 1. This class uses the true exponential, which
    equals the papers' ``R`` to first order. Step k, from 1, has the learning rate ``rate * 0.8^(k / 100)``.

    Args:
        steps: optimizer steps per initial pose.
        rate: Adam's learning rate.
        first_rate: learning rate of the first step.
        seed: seed of the initial screw, a sample of N(0, 1e-6²), and of the loss's random numbers.
    """

    def __init__(self, steps: int, rate: float, first_rate: float, seed: int) -> None:
        self.steps = steps
        self.rate = rate
        self.first_rate = first_rate
        self.seed = seed

    @abstractmethod
    def make_loss(self, scene: Scene, query: Query, generator: torch.Generator) -> PoseLoss:
        """Build the loss that is minimized for a query.

        Args:
            scene: the object.
            query: the image.
            generator: CPU generator of the loss's random numbers.
        """

    def __call__(self, scene: Scene, query: Query, initial_poses: Float[Tensor, "s 4 4"]) -> RefinementResult:
        """Refine each initial pose and return the best result; see ``Refiner``."""
        results = [self._refine(scene, query, pose) for pose in initial_poses]
        best = min(results, key=lambda result: result.cost)
        n_renders = sum(result.n_renders for result in results)
        return RefinementResult(best.camera_to_world, best.cost, best.converged, n_renders)

    def _refine(self, scene: Scene, query: Query, initial_pose: Tensor) -> RefinementResult:
        generator = torch.Generator().manual_seed(self.seed)
        screw = (1e-6 * torch.randn(7, generator=generator)).to(initial_pose).requires_grad_()
        to_center = torch.eye(4, dtype=initial_pose.dtype, device=initial_pose.device)
        to_center[:3, 3] = -scene.center.to(initial_pose)
        from_center = torch.linalg.inv(to_center)
        optimizer = torch.optim.Adam([screw], lr=self.first_rate)
        best_pose, best_cost = initial_pose, float("inf")
        with torch.enable_grad():
            loss_of = self.make_loss(scene, query, generator)
            for step in range(self.steps):
                motion = se3_exp(screw[6] * torch.cat([screw[3:6], screw[:3]]))
                pose = from_center @ motion @ to_center @ initial_pose
                loss = loss_of(pose)
                if loss.item() < best_cost:
                    best_pose, best_cost = pose.detach(), loss.item()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                optimizer.param_groups[0]["lr"] = self.rate * _DECAY ** ((step + 1) / _DECAY_STEPS)
        return RefinementResult(best_pose, best_cost, converged=False, n_renders=self.steps)


class AdamRefiner(ScrewRefiner):
    """SplatPose's refiner (section 3.2). Its loss is 0.8 L1 + 0.2 (1 - SSIM) of the whole image.

    Args:
        steps: optimizer steps per initial pose; 175 in the paper's command line.
        rate: learning rate, 0.01 in the paper. The first step has a tenth of the rate, 0.001 in the paper.
        ssim_weight: weight of 1 - SSIM; 0.2 in the paper.
        seed: see ``ScrewRefiner``.
    """

    def __init__(self, steps: int = 175, rate: float = 0.01, ssim_weight: float = 0.2, seed: int = 0) -> None:
        super().__init__(steps, rate, 0.1 * rate, seed)
        self.ssim_weight = ssim_weight

    def make_loss(self, scene: Scene, query: Query, generator: torch.Generator) -> PoseLoss:
        """Build the loss between the whole rendering and the query; see ``ScrewRefiner``."""
        del generator
        target = query.image.permute(1, 2, 0).contiguous()

        def loss_of(camera_to_world: Tensor) -> Tensor:
            rgb = scene.render(query.camera_at(camera_to_world), query.background).rgb
            loss = (1 - self.ssim_weight) * (rgb - target).abs().mean()
            return loss + self.ssim_weight * (1 - ssim(rgb, target)) if self.ssim_weight else loss

        return loss_of


class ReflectanceRefiner(ScrewRefiner):
    """PIAD's refiner (CVPR 2025). Its loss is 0.6 L1 of the reflectance + 0.4 L1 of the image.

    A scene that was fitted with its reflectance renders the reflectance, like the paper's second scene. For any other
    scene the refiner computes the reflectance from the rendering.

    Args:
        steps: optimizer steps per initial pose; 300 in the paper, 500 for the paper's real objects.
        rate: learning rate; 0.02 in the paper's configurations.
        reflectance_share: weight of the reflectance; 0.6 in the paper.
        seed: see ``ScrewRefiner``.
        decompose: computes the reflectance of images, the same as in the fit.
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

    def make_loss(self, scene: Scene, query: Query, generator: torch.Generator) -> PoseLoss:
        """Build the loss between rendering and query, on colors and on reflectance; see ``ScrewRefiner``."""
        del generator
        image = query.image[None]
        query_reflectance = self.decompose(image)
        background = query.background
        background_reflectance = reflectance_of_color(background, self.decompose)

        def loss_of(camera_to_world: Tensor) -> Tensor:
            camera = query.camera_at(camera_to_world)
            rendering = scene.render(camera, background).rgb.permute(2, 0, 1)[None]
            if is_reflective(scene):
                output = scene.render_reflectance(camera, background_reflectance)
                rendered_reflectance = output.rgb.permute(2, 0, 1)[None]
            else:
                rendered_reflectance = self.decompose(rendering)
            reflectance_loss = (rendered_reflectance - query_reflectance).abs().mean()
            color_loss = (rendering - image).abs().mean()
            return self.reflectance_share * reflectance_loss + (1 - self.reflectance_share) * color_loss

        return loss_of


class InerfRefiner(ScrewRefiner):
    """OmniposeAD's refiner (PAD, section 4; iNeRF, Yen-Chen et al. 2021). Its loss is the squared error of rays.

    Each step samples rays without replacement from the interest region: SIFT key points, dilated three times by a box
    of 5 pixels. If the region has fewer pixels than ``rays``, each step uses all of them. A query without key points
    uses its foreground.

    Args:
        steps: optimizer steps per initial pose; 300 in the paper.
        rays: rays per step; 3072 in the paper.
        rate: learning rate; 0.01 in the paper.
        seed: see ``ScrewRefiner``.
    """

    def __init__(self, steps: int = 300, rays: int = 3072, rate: float = 0.01, seed: int = 0) -> None:
        super().__init__(steps, rate, rate, seed)
        self.rays = rays

    def make_loss(self, scene: Scene, query: Query, generator: torch.Generator) -> PoseLoss:
        """Build the loss of random pixels of the interest region; see ``ScrewRefiner``.

        Raises:
            TypeError: if the scene cannot render single pixels.
        """
        if not isinstance(scene, PixelScene):
            msg = (
                f"The refiner 'inerf' renders single rays, which a {type(scene).__name__} cannot do. "
                "Use the refiner 'gauss_newton' or 'adam'."
            )
            raise TypeError(msg)
        region = interest_region(query)
        target = query.image.flatten(1).T

        def loss_of(camera_to_world: Tensor) -> Tensor:
            order = torch.randperm(len(region), generator=generator)[: self.rays]
            pixels = region[order.to(region.device)]
            rgb = scene.render_pixels(query.camera_at(camera_to_world), pixels, query.background)
            return (rgb - target[pixels]).square().mean()

        return loss_of


def interest_region(query: Query) -> Int[Tensor, " n"]:
    """Return the indices of pixels near SIFT key points, row by row.

    A query without key points gives its foreground, or all pixels if the foreground is unknown or empty.

    Args:
        query: the image.
    """
    gray = (query.image.mean(0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    marks = np.zeros_like(gray)
    height, width = gray.shape
    for point in cv2.SIFT.create().detect(gray, None):
        column, row = round(point.pt[0]), round(point.pt[1])
        marks[min(row, height - 1), min(column, width - 1)] = 1
    marks = cv2.dilate(marks, np.ones((_BOX_SIZE, _BOX_SIZE), np.uint8), iterations=_DILATIONS)
    region = torch.from_numpy(marks).flatten().nonzero()[:, 0]
    if not len(region) and query.foreground is not None:
        region = query.foreground.flatten().nonzero()[:, 0]
    if not len(region):
        region = torch.arange(height * width)
    return region.to(query.image.device)
