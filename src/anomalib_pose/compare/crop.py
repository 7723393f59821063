# SPDX-License-Identifier: Apache-2.0
"""Square windows around objects: cropping, resizing, and pasting maps of windows into whole images."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ObjectCrop:
    """Square windows around the objects of a batch of images, resized to one size.

    Args:
        boxes: top, left and side in pixels of each window; a window may extend beyond its image.
        size: side of the resized windows.
        height: height of the images.
        width: width of the images.
    """

    boxes: tuple[tuple[int, int, int], ...]
    size: int
    height: int
    width: int

    @classmethod
    def around(cls, alpha: Float[Tensor, "b h w"], size: int, margin: float, threshold: float = 0.1) -> "ObjectCrop":
        """Place windows around the objects, and around the whole image where there is no object.

        Args:
            alpha: opacity of the objects.
            size: side of the resized windows.
            margin: width added at each side, as a fraction of the object's longer side.
            threshold: opacity above which a pixel belongs to the object.
        """
        height, width = alpha.shape[-2:]
        boxes = []
        for mask in alpha > threshold:
            rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
            if not rows:
                rows, columns = [0, height - 1], [0, width - 1]
                extra = 0.0
            else:
                extra = margin
            length = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
            # a window larger than the image would spend resolution on pixels outside the image
            side = min(round(length * (1 + 2 * extra)), max(height, width))
            top = cls._window_start((rows[0] + rows[-1] + 1) / 2, side, height)
            left = cls._window_start((columns[0] + columns[-1] + 1) / 2, side, width)
            boxes.append((top, left, side))
        return cls(tuple(boxes), size, height, width)

    @staticmethod
    def _window_start(center: float, side: int, length: int) -> int:
        """Return the first pixel of a window: inside the image if it fits, else centered on the image."""
        start = round(center - side / 2)
        return (length - side) // 2 if side > length else min(max(start, 0), length - side)

    def apply(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c s s"]:
        """Crop and resize the windows; beyond an image, its border is repeated.

        Args:
            images: one image for each window.
        """
        windows = []
        for image, (top, left, side) in zip(images, self.boxes, strict=True):
            rows = torch.arange(top, top + side, device=images.device).clamp(0, self.height - 1)
            columns = torch.arange(left, left + side, device=images.device).clamp(0, self.width - 1)
            window = image.index_select(1, rows).index_select(2, columns)[None]
            windows.append(self._resize(window, self.size))
        return torch.cat(windows)

    def restore(self, maps: Float[Tensor, "b s s"], fill: float = 0.0) -> Float[Tensor, "b height width"]:
        """Put maps of the windows back to their places in the images.

        Args:
            maps: values in the windows.
            fill: value outside the windows.
        """
        result = maps.new_full((len(maps), self.height, self.width), fill)
        for index, (top, left, side) in enumerate(self.boxes):
            window = self._resize(maps[None, index : index + 1], side)[0, 0]
            first_row, first_column = max(top, 0), max(left, 0)
            last_row, last_column = min(top + side, self.height), min(left + side, self.width)
            result[index, first_row:last_row, first_column:last_column] = window[
                first_row - top : last_row - top, first_column - left : last_column - left
            ]
        return result

    @staticmethod
    def _resize(window: Tensor, size: int) -> Tensor:
        if window.shape[-1] == size:
            return window
        return functional.interpolate(window, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
