# SPDX-License-Identifier: Apache-2.0
"""Training views and queries over a white background."""

from torch import Tensor

from anomalib_pose.scene import white_foreground


def over_white(images: Tensor, foreground: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
    """Put training views over white where the foreground is known.

    Args:
        images: RGB (C, 3, H, W) in [0, 1].
        foreground: masks of the object (C, H, W), or None.

    Returns:
        Images; masks, derived from a white background if none were given; and whether the background was white already.
    """
    derived = white_foreground(images)
    if derived is not None:
        return images, derived if foreground is None else foreground, True
    if foreground is None:
        return images, None, False
    return images * foreground[:, None] + 1 - foreground[:, None], foreground, False


def query_over_white(
    image: Tensor, foreground: Tensor | None, *, white_background: bool
) -> tuple[Tensor, Tensor | None]:
    """Put a query over white where its foreground is known.

    Args:
        image: RGB (3, H, W) in [0, 1].
        foreground: mask of the object (H, W), or None.
        white_background: whether the training views had a white background. The mask of a query without one is then
            derived from its white background, if it has one.

    Returns:
        Image and mask; the mask is None if the foreground is unknown.
    """
    if foreground is None and white_background:
        derived = white_foreground(image[None])
        return image, None if derived is None else derived[0]
    if foreground is not None and not white_background:
        image = image * foreground + 1 - foreground
    return image, foreground
