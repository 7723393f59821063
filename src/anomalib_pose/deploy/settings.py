# SPDX-License-Identifier: Apache-2.0
"""Settings of an exported detector, and its size on disk."""

import math
from dataclasses import dataclass, fields
from typing import Any

BYTES_A_PIXEL = 4
"""Three bytes of color, and one byte with depth in seven bits and the silhouette in one bit."""
THUMBNAIL = 25
_MAX_OVERSAMPLING = 4
_DEFAULT_BANK_SIZE, _DEFAULT_COMPARED_SIZE = 200, 256
"""Default sizes of the bank's views for pose estimation, and of the window that is compared."""


_OF_RASTERIZED = ("drawn_size", "oversampling", "photographs")
"""Settings of rasterized references."""


@dataclass(frozen=True)
class DetectorSettings:
    """Settings of an exported detector.

    Args:
        views: rendered views of the object in the bank.
        size: longer side in pixels of the window around the object in the bank's views. Poses are estimated at
            this size. 0 for 200 if Gaussians are rasterized, and for 256 if the views themselves are compared.
        starts: number of initial poses of the alignment, the most similar views of the bank.
        neighbours: number of views that one reference is made from; a surface hidden in one may be visible in another.
        drawn: rasterize the Gaussians of the scene at the estimated pose. If False, or if the scene has no Gaussians,
            views of the bank are warped there.
        drawn_size: longer side in pixels of the window in which the query is compared with the rasterized reference. 0
            for ``size``, or for 256 where that is 0 too. Warped views are compared at their own size.
        oversampling: rasterized pixels along a side for one pixel that is compared, never more than photographs
            have. Larger values are closer to the scene's own renderings, and slower. 1 for none.
        photographs: number of the model's nearby photographs whose residuals correct rasterized references; 0 for none.
        steps: alignment steps at a quarter, at half and at the full size.
        max_megabytes: limit of the bank's size; a larger bank is refused before it is rendered.
        seed: seed of the synthetic defects that thresholds are transferred with.

    Raises:
        ValueError: if a value is of another type or out of its range, or has no effect because views are warped.
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
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.default)
        if (
            self.views < 1
            or min(self.starts, self.neighbours) < 1
            or any(size != 0 and size < 64 for size in (self.size, self.drawn_size))
            or self.photographs < 0
            or not 1 <= self.oversampling <= _MAX_OVERSAMPLING
            or min(self.steps) < 0
        ):
            msg = (
                "A detector needs views >= 1, starts >= 1, neighbours >= 1, size and drawn_size >= 64 or 0, "
                f"oversampling in 1 to {_MAX_OVERSAMPLING}, photographs >= 0, and three numbers of steps, got "
                f"{self.views}, {self.starts}, {self.neighbours}, {self.size}, {self.drawn_size}, "
                f"{self.oversampling}, {self.photographs} and {self.steps}."
            )
            raise ValueError(msg)
        if self.max_megabytes < 1:
            msg = f"max_megabytes should be 1 or more, got {self.max_megabytes}."
            raise ValueError(msg)
        if not self.drawn:
            check_warped_settings(self, "drawn=False")

    def sizes(self, *, drawn: bool) -> tuple[int, int]:
        """Return the longer sides in pixels of the bank's views and of the window that is compared.

        Args:
            drawn: whether Gaussians are rasterized; if not, views of the bank are warped.
        """
        if not drawn:
            return (self.size or _DEFAULT_COMPARED_SIZE,) * 2
        return self.size or _DEFAULT_BANK_SIZE, self.drawn_size or self.size or _DEFAULT_COMPARED_SIZE


def _check_type(name: str, value: Any, default: Any) -> None:
    """Refuse a value of another type than the default's, and a number that is not finite."""
    if isinstance(default, bool):
        fits = isinstance(value, bool)
    elif isinstance(default, tuple):
        fits = isinstance(value, tuple) and len(value) == len(default) and all(type(number) is int for number in value)
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = type(value) is int
    if not fits:
        msg = f"The export's {name} should be a value such as {default!r}, got {value!r}."
        raise ValueError(msg)


def check_warped_settings(settings: DetectorSettings, reason: str) -> None:
    """Refuse settings of rasterized references where views of the bank are warped.

    Args:
        settings: settings of the detector.
        reason: why views are warped.

    Raises:
        ValueError: if such a setting differs from its default.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in _OF_RASTERIZED and value != field.default:
            msg = f"The export's {field.name}={value!r} needs rasterized Gaussians, got {reason}."
            raise ValueError(msg)


def bank_megabytes(views: int, height: int, width: int, gaussians: int = 0) -> float:
    """Compute the size of a view bank in units of 10^6 bytes, with descriptors in half precision.

    Args:
        views: number of views.
        height: height of a view in pixels.
        width: width of a view in pixels.
        gaussians: number of Gaussians; for each view, one byte per Gaussian stores its visibility.
    """
    descriptor = 2 * 4 * THUMBNAIL**2
    return views * (BYTES_A_PIXEL * height * width + descriptor + gaussians) / 1e6


def gaussians_megabytes(gaussians: int, sh_degree: int) -> float:
    """Compute the size of the Gaussians themselves in units of 10^6 bytes, in single precision.

    Args:
        gaussians: number of Gaussians.
        sh_degree: degree of their colors' spherical harmonics.
    """
    center, axes, opacity, colors = 3, 9, 1, 3 * (sh_degree + 1) ** 2
    return 4 * gaussians * (center + axes + opacity + colors) / 1e6


def check_size(
    settings: DetectorSettings, height: int, width: int, gaussians: int = 0, sh_degree: int = 0, corrections: float = 0
) -> float:
    """Return the size of a detector in units of 10^6 bytes, and refuse one that is too large.

    Args:
        settings: number of views, and limit of the size.
        height: height of a view in pixels.
        width: width of a view in pixels.
        gaussians: number of the scene's Gaussians; those that no view of the bank sees are dropped later.
        sh_degree: degree of their colors' spherical harmonics.
        corrections: size of the corrections of rasterized references in units of 10^6 bytes.

    Raises:
        ValueError: if the detector is larger than the limit; the message has the number of views that would fit.
    """
    fixed = gaussians_megabytes(gaussians, sh_degree) + corrections
    view = bank_megabytes(1, height, width, gaussians)
    needed = fixed + settings.views * view
    if needed > settings.max_megabytes:
        fits = max(0, math.floor((settings.max_megabytes - fixed) / view))
        content = f" and {gaussians} Gaussians" if gaussians else ""
        content += f", corrected by {corrections:.0f} MB of photographs," if corrections else ""
        msg = (
            f"A bank of {settings.views} views of {height} x {width} pixels{content} takes {needed:.0f} MB, more than "
            f"max_megabytes={settings.max_megabytes}. Nothing was written. Up to views={fits} fit at this size; "
            "or lower size or photographs, or raise max_megabytes."
        )
        raise ValueError(msg)
    return needed
