# SPDX-License-Identifier: Apache-2.0
"""Protocols of a fitted object, which do not depend on its representation."""

from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render import RenderOutput


@runtime_checkable
class Scene(Protocol):
    """A fitted object."""

    def render(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Render images of the object.

        Args:
            cameras: one camera, or C of them.
            background: color (3,) behind the object; black if None.
        """
        ...

    @property
    def center(self) -> Tensor:
        """Center of the object (3,), world frame."""
        ...

    @property
    def extent(self) -> float:
        """Radius, in scene units, of a ball around the center that contains the object without stray parts."""
        ...


@runtime_checkable
class ReflectiveScene(Scene, Protocol):
    """A fitted object that can hold its reflectance, which does not depend on the light, besides its colors."""

    @property
    def reflective(self) -> bool:
        """Whether the scene holds the reflectance."""
        ...

    def render_reflectance(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Render images of the object's reflectance.

        Args:
            cameras: one camera, or C of them.
            background: reflectance (3,) of the background; black if None.
        """
        ...


def is_reflective(scene: Scene) -> TypeGuard[ReflectiveScene]:
    """Return whether a scene can render the object's reflectance."""
    return isinstance(scene, ReflectiveScene) and scene.reflective


@runtime_checkable
class PixelScene(Scene, Protocol):
    """A fitted object that can render single pixels."""

    def render_pixels(self, camera: Camera, pixels: Tensor, background: Tensor) -> Tensor:
        """Render the colors (N, 3) of N pixels; differentiable in the camera's pose.

        Args:
            camera: one camera.
            pixels: indices (N,) of the image's pixels, row by row.
            background: color (3,) behind the object.
        """
        ...
