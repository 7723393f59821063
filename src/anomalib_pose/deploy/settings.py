# SPDX-License-Identifier: Apache-2.0
"""The size of an exported detector, and what that takes."""

import math
from dataclasses import dataclass

BYTES_A_PIXEL = 4
"""Color in three bytes; depth in seven bits and the silhouette in one."""
THUMBNAIL = 25
_MOST_OVERSAMPLING = 4
_FOUND_BY, _COMPARED = 200, 256
"""Sizes that poses are found by, and that queries are compared in, where none is asked for."""


@dataclass(frozen=True)
class DetectorSettings:
    """What an exported detector is built of.

    Args:
        views: rendered views of the object in the bank.
        size: longer side in pixels of the window around the object in the bank's views, which the pose is found by; 0
            for 200 where Gaussians are drawn, and for 256 where the views themselves are compared.
        starts: views of the bank that the alignment starts from.
        neighbours: views that the reference is put together from; what one view hides another one shows.
        drawn: draw the Gaussians of the scene at the pose that was found, where it is made of Gaussians; else views of
            the bank are warped there.
        drawn_size: longer side in pixels of the window in which the query is compared with what is drawn; 0 for
            ``size``, or for 256 where that is 0 too. With views that are warped it is compared at their own size.
        oversampling: pixels that are drawn along a side for one that is compared, no more than photographs have: closer
            to what the scene itself shows, and slower. 1 for none.
        photographs: of those that the model corrects its renderings by, how many correct what is drawn; 0 for none.
        steps: alignment steps at a quarter, at half and at the full size.
        max_megabytes: a larger bank is refused before it is rendered.
        seed: of the defects that are drawn to carry the thresholds over.
    """

    views: int = 500
    size: int = 0
    starts: int = 6
    neighbours: int = 3
    drawn: bool = True
    drawn_size: int = 0
    oversampling: float = 1.25
    photographs: int = 192
    steps: tuple[int, int, int] = (8, 6, 4)
    max_megabytes: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            self.views < 1
            or min(self.starts, self.neighbours) < 1
            or any(size != 0 and size < 64 for size in (self.size, self.drawn_size))
            or self.photographs < 0
            or not 1 <= self.oversampling <= _MOST_OVERSAMPLING
            or len(self.steps) != 3
            or min(self.steps) < 0
        ):
            msg = (
                "A detector needs views >= 1, starts >= 1, neighbours >= 1, size and drawn_size >= 64 or 0, "
                f"oversampling in 1 to {_MOST_OVERSAMPLING}, photographs >= 0, and three numbers of steps, got "
                f"{self.views}, {self.starts}, {self.neighbours}, {self.size}, {self.drawn_size}, "
                f"{self.oversampling}, {self.photographs} and {self.steps}."
            )
            raise ValueError(msg)

    def sizes(self, *, drawn: bool) -> tuple[int, int]:
        """Longer sides in pixels of the window in the bank's views, and of that in which the query is compared.

        Args:
            drawn: whether Gaussians are drawn, not views of the bank warped.
        """
        if not drawn:
            return (self.size or _COMPARED,) * 2
        return self.size or _FOUND_BY, self.drawn_size or self.size or _COMPARED


def bank_megabytes(views: int, height: int, width: int, gaussians: int = 0) -> float:
    """Size of a bank of views in units of 10^6 bytes, descriptors in half precision included.

    Args:
        views: number of views.
        height: of a view in pixels.
        width: of a view in pixels.
        gaussians: a byte for each says whether a view sees it.
    """
    descriptor = 2 * 4 * THUMBNAIL**2
    return views * (BYTES_A_PIXEL * height * width + descriptor + gaussians) / 1e6


def drawing_megabytes(gaussians: int, sh_degree: int) -> float:
    """Size of the Gaussians themselves in units of 10^6 bytes, in single precision.

    Args:
        gaussians: their number.
        sh_degree: of their colors.
    """
    center, axes, opacity, colors = 3, 9, 1, 3 * (sh_degree + 1) ** 2
    return 4 * gaussians * (center + axes + opacity + colors) / 1e6


def check_size(
    settings: DetectorSettings, height: int, width: int, gaussians: int = 0, sh_degree: int = 0, corrections: float = 0
) -> float:
    """Megabytes of the bank and of what it draws with.

    Args:
        settings: number of views, and how much is allowed.
        height: of a view in pixels.
        width: of a view in pixels.
        gaussians: that are drawn; those that no view of the bank sees are dropped later.
        sh_degree: of their colors.
        corrections: megabytes of what corrects the drawing.

    Raises:
        ValueError: if they are larger than allowed; with the number of views that would fit.
    """
    fixed = drawing_megabytes(gaussians, sh_degree) + corrections
    view = bank_megabytes(1, height, width, gaussians)
    needed = fixed + settings.views * view
    if needed > settings.max_megabytes:
        fits = max(0, math.floor((settings.max_megabytes - fixed) / view))
        drawn = f" and {gaussians} Gaussians" if gaussians else ""
        drawn += f", corrected by {corrections:.0f} MB of photographs," if corrections else ""
        msg = (
            f"A bank of {settings.views} views of {height} x {width} pixels{drawn} takes {needed:.0f} MB, more than "
            f"max_megabytes={settings.max_megabytes}. Nothing was written. Up to views={fits} fit at this size; "
            "or lower size or photographs, or raise max_megabytes."
        )
        raise ValueError(msg)
    return needed
