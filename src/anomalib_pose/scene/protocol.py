# SPDX-License-Identifier: Apache-2.0
"""What the layers above ask of a fitted object, however it is represented."""

from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render import RenderOutput


@runtime_checkable
class Scene(Protocol):
    """A fitted object."""

    def render(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Images of the object.

        Args:
            cameras: one camera, or C of them.
            background: color (3,) behind the object; black if None.
        """
        ...

    @property
    def center(self) -> Tensor:
        """Middle of the object (3,), world frame."""
        ...

    @property
    def extent(self) -> float:
        """Radius, in scene units, of a ball around the center that holds the object but for stray parts."""
        ...


@runtime_checkable
class ReflectiveScene(Scene, Protocol):
    """A fitted object that may know what it reflects, whatever the light, besides how it looks."""

    @property
    def reflective(self) -> bool:
        """Whether it does."""
        ...

    def render_reflectance(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Images of what the object reflects.

        Args:
            cameras: one camera, or C of them.
            background: reflectance (3,) of what is behind the object; black if None.
        """
        ...


def is_reflective(scene: Scene) -> TypeGuard[ReflectiveScene]:
    """Whether a scene can render what the object reflects."""
    return isinstance(scene, ReflectiveScene) and scene.reflective


@runtime_checkable
class PixelScene(Scene, Protocol):
    """A fitted object whose pixels can be rendered one by one."""

    def render_pixels(self, camera: Camera, pixels: Tensor, background: Tensor) -> Tensor:
        """Colors (N, 3) of some pixels; differentiable in the camera's pose.

        Args:
            camera: one camera.
            pixels: indices (N,) into the image's pixels, row by row.
            background: color (3,) behind the object.
        """
        ...
