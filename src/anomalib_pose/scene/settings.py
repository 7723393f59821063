# SPDX-License-Identifier: Apache-2.0
"""Settings of a fit of Gaussians, and the presets ``default`` and ``paper``."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

FitRecipe = Literal["default", "paper"]
"""Presets of ``FitSettings``: this package's own, and the one of the SplatPose paper."""

InitialPoints = Literal["hull", "random"]
"""Positions of the initial Gaussians: on the surface of the visual hull, or at random in the cube around the ball that
the cameras look at."""

DensityName = Literal["relocate", "adaptive"]
"""How the number of Gaussians changes during a fit; see ``Relocation`` and ``AdaptiveDensity``."""


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit of Gaussians. The defaults are this package's own; ``paper`` returns SplatPose's.

    Args:
        steps: optimizer steps, one view each.
        max_gaussians: largest number of Gaussians.
        initial_gaussians: number of Gaussians at the start.
        sh_degree: spherical harmonics degree of the colors; 0 in the paper, which bakes gloss into the surface.
        reflectance: fit the object's reflectance, which does not depend on the light, as three more channels of the
            same Gaussians. PIAD's paper fits a second scene instead. A step takes twice the time.
        initial: ``"hull"``: surface of the visual hull if masks are known, else random points; ``"random"``.
        initial_opacity: opacity of all Gaussians at the start.
        density: ``"relocate"`` (fixed budget) or ``"adaptive"`` (clone, split, prune, reset).
        random_background: fraction of the steps with a random background color, if the foreground is known. It keeps
            Gaussians from imitating the background. The other steps use white.
        alpha_weight: weight of the mean alpha outside the foreground, if the foreground is known.
        crop: render only the object's box in nine of ten steps, if the foreground is known.
        half_size_share: fraction of the steps, at the beginning, that use images of half the size.
        ssim_weight: weight of 1 - SSIM in the loss; L1 has the rest of the weight.
        opacity_weight: weight of the mean opacity, which lets unneeded Gaussians fade (MCMC, section 4).
        scale_weight: weight of the mean scale in units of the object's radius.
        means_rate: Adam's learning rate of the centers, in units of the object's radius.
        means_decay: factor on the rate of the centers at the last step; the decay is log-linear.
        other_decay: factor on all other rates at the last step.
        scales_rate: learning rate of the log-scales.
        quats_rate: learning rate of the quaternions.
        opacities_rate: learning rate of the logit-opacities.
        sh_rate: learning rate of the constant color coefficients; higher coefficients get a twentieth of the rate.
        seed: seed of all random numbers.

    Raises:
        ValueError: if a number is out of range, or ``initial`` or ``density`` is unknown.
    """

    steps: int = 3000
    max_gaussians: int = 20_000
    initial_gaussians: int = 8_000
    sh_degree: int = 2
    reflectance: bool = False
    initial: InitialPoints | str = "hull"
    initial_opacity: float = 0.5
    density: DensityName | str = "relocate"
    random_background: float = 0.2
    alpha_weight: float = 0.1
    crop: bool = True
    half_size_share: float = 0.25
    ssim_weight: float = 0.2
    opacity_weight: float = 1e-3
    scale_weight: float = 1e-3
    means_rate: float = 4e-3
    means_decay: float = 0.01
    other_decay: float = 1.0
    scales_rate: float = 1e-2
    quats_rate: float = 5e-3
    opacities_rate: float = 5e-2
    sh_rate: float = 1.5e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.initial_gaussians < 1 or self.max_gaussians < self.initial_gaussians:
            msg = (
                "A fit needs steps >= 1 and 1 <= initial_gaussians <= max_gaussians, "
                f"got {self.steps}, {self.initial_gaussians} and {self.max_gaussians}."
            )
            raise ValueError(msg)
        for name, choices in (("initial", get_args(InitialPoints)), ("density", get_args(DensityName))):
            if getattr(self, name) not in choices:
                msg = f"{name} should be one of {', '.join(map(repr, choices))}, got {getattr(self, name)!r}."
                raise ValueError(msg)

    @classmethod
    def paper(cls, steps: int = 30_000, seed: int = 0) -> "FitSettings":
        """Build SplatPose's recipe: 100k random points, 30k steps, densification, white background, SH degree 0."""
        return cls(
            steps=steps,
            max_gaussians=1_000_000,
            initial_gaussians=100_000,
            sh_degree=0,
            initial="random",
            initial_opacity=0.1,
            density="adaptive",
            random_background=0.0,
            alpha_weight=0.0,
            crop=False,
            half_size_share=0.0,
            opacity_weight=0.0,
            scale_weight=0.0,
            # The rate is 1.6e-4 times the scene extent. For "adaptive" the fit multiplies the rate by the extent.
            means_rate=1.6e-4,
            other_decay=1.0,
            scales_rate=5e-3,
            quats_rate=1e-3,
            opacities_rate=5e-2,
            sh_rate=2.5e-3,
            seed=seed,
        )

    @classmethod
    def default(cls, steps: int, max_gaussians: int, seed: int) -> "FitSettings":
        """Build this package's recipe: a fixed budget of Gaussians that starts on the visual hull."""
        initial = max(1, min(cls.initial_gaussians, max_gaussians))
        return cls(steps=steps, max_gaussians=max_gaussians, initial_gaussians=initial, seed=seed)

    @classmethod
    def of(cls, recipe: FitRecipe | str, steps: int, max_gaussians: int, sh_degree: int, seed: int) -> "FitSettings":
        """Build the settings of a named recipe.

        Args:
            recipe: ``"default"`` or ``"paper"``.
            steps: optimizer steps.
            max_gaussians: largest number of Gaussians; the recipe ``"paper"`` ignores it.
            sh_degree: degree of the colors.
            seed: seed of all random numbers.

        Raises:
            ValueError: if the recipe is unknown.
        """
        recipes: dict[str, Callable[[], FitSettings]] = {
            "default": partial(cls.default, steps, max_gaussians, seed),
            "paper": partial(cls.paper, steps, seed),
        }
        if recipe not in recipes:
            msg = f"recipe should be one of {', '.join(map(repr, recipes))}, got {recipe!r}."
            raise ValueError(msg)
        return replace(recipes[recipe](), sh_degree=sh_degree)
