# SPDX-License-Identifier: Apache-2.0
"""The window of an image that an exported detector compares.

Twin of ``Window.camera``: cropping pixels of ``anomalib_pose.geometry.Camera.project`` and scaling them, to 1e-4 px.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from anomalib_pose.geometry import Camera

WindowMatrix = Callable[[int, int, float, float, Tensor], Tensor]
"""One of the matrices of ``resample``: takes length, size, start, extent and a tensor that gives dtype and device."""

_MULTIPLE = 8  # the alignment halves the window twice, and networks prefer multiples of 8


class Window(NamedTuple):
    """Rectangle that holds the object in every view, in fractions of the image's size.

    Args:
        left: left edge.
        top: upper edge.
        width: width of the window.
        height: height of the window.
    """

    left: float
    top: float
    width: float
    height: float

    def pixels(self, camera: Camera, size: int) -> tuple[int, int]:
        """Return height and width of the window in pixels, multiples of 8, with a longer side of about ``size``.

        Args:
            camera: camera of the images, which gives their size.
            size: longer side in pixels.
        """
        ratio = (self.height * camera.height) / (self.width * camera.width)
        sides = (size, size / ratio) if ratio > 1 else (size * ratio, size)
        height, width = (_MULTIPLE * max(8, round(side / _MULTIPLE)) for side in sides)
        return height, width

    def matrices(
        self, matrix: WindowMatrix, image_size: Sequence[int], size: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the matrices that resample the rows and the columns of an image.

        Args:
            matrix: function of ``resample`` that makes the matrix of one axis.
            image_size: height and width of the images in pixels.
            size: height and width of the window in pixels.
            like: tensor that gives dtype and device.
        """
        return (
            matrix(image_size[0], size[0], self.top, self.height, like),
            matrix(image_size[1], size[1], self.left, self.width, like),
        )

    def camera(self, camera: Camera, height: int, width: int) -> Camera:
        """Return the camera whose image is the resized window.

        Args:
            camera: camera of the images.
            height: height of the window in pixels.
            width: width of the window in pixels.
        """
        scale = camera.K.new_tensor([width / (self.width * camera.width), height / (self.height * camera.height), 1])
        intrinsics = camera.K.clone()
        intrinsics[..., 2] -= camera.K.new_tensor([self.left * camera.width, self.top * camera.height, 0])
        return Camera(camera.camera_to_world, intrinsics * scale[:, None], width, height)
