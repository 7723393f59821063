# SPDX-License-Identifier: Apache-2.0
"""The part of an image that an exported detector looks at."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from anomalib_pose.geometry import Camera

WindowMatrix = Callable[[int, int, float, float, Tensor], Tensor]

_MULTIPLE = 8  # the pyramid halves twice, and networks like it


class Window(NamedTuple):
    """Part of the image that holds the object in every view, in parts of the image's size.

    Args:
        left: of the window.
        top: of the window.
        width: of the window.
        height: of the window.
    """

    left: float
    top: float
    width: float
    height: float

    def pixels(self, camera: Camera, size: int) -> tuple[int, int]:
        """Height and width of the window where its longer side has about so many pixels.

        Args:
            camera: size of the images.
            size: longer side in pixels.
        """
        ratio = (self.height * camera.height) / (self.width * camera.width)
        sides = (size, size / ratio) if ratio > 1 else (size * ratio, size)
        height, width = (_MULTIPLE * max(8, round(side / _MULTIPLE)) for side in sides)
        return height, width

    def along_axes(
        self, matrix: WindowMatrix, image_size: Sequence[int], size: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the rows and the columns are multiplied by, one of the matrices of ``resample`` for each axis.

        Args:
            matrix: makes it of an axis.
            image_size: height and width of the images in pixels.
            size: height and width of the window in pixels.
            like: gives dtype and device.
        """
        return (
            matrix(image_size[0], size[0], self.top, self.height, like),
            matrix(image_size[1], size[1], self.left, self.width, like),
        )

    def camera(self, camera: Camera, height: int, width: int) -> Camera:
        """The camera whose image is the window, resized.

        Args:
            camera: of the images.
            height: of the window in pixels.
            width: of the window in pixels.
        """
        scale = camera.K.new_tensor([width / (self.width * camera.width), height / (self.height * camera.height), 1])
        intrinsics = camera.K.clone()
        intrinsics[..., 2] -= camera.K.new_tensor([self.left * camera.width, self.top * camera.height, 0])
        return Camera(camera.camera_to_world, intrinsics * scale[:, None], width, height)
