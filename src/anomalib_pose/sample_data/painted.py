# SPDX-License-Identifier: Apache-2.0
"""Defects that are painted onto a photograph of an object, whose shape nobody knows but for its mask."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import cv2
import numpy as np
from scipy import ndimage

from anomalib_pose.sample_data.defects import LEAST_CONTRAST, STAIN_COLORS, waves

_TRIES = 60
_LEAST_PIXELS = 5
_LEAST_COVER = 0.05  # what covers less is cut off: nobody sees it, and it would be in the mask
_BEYOND_OUTLINE = 3  # pixels next to the outline show the object, too
_AT_OUTLINE = 0.75
_SCRATCH_STEPS = 32
_FINER = 4
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class DefectSizes:
    """How large painted defects are, each as a least and a largest size.

    Args:
        stain_area: of a stain, as shares of the object's pixels.
        missing_area: of a missing piece, as shares of the object's pixels.
        scratch_length: as shares of the object's extent, the root of its area.
        scratch_width: as shares of the object's extent; never below a pixel.

    Raises:
        ValueError: if a range is not ordered, or not above 0, or an area above a half.
    """

    stain_area: tuple[float, float] = (0.004, 0.03)
    missing_area: tuple[float, float] = (0.004, 0.03)
    scratch_length: tuple[float, float] = (0.15, 0.5)
    scratch_width: tuple[float, float] = (0.004, 0.01)

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            least, largest = getattr(self, name)
            limit = 0.5 if name.endswith("area") else 1.0
            if not 0 < least <= largest <= limit:
                msg = f"{name} should be a least and a largest size above 0, up to {limit}, got {least} and {largest}."
                raise ValueError(msg)


@dataclass(frozen=True)
class _Paint:
    """Cover (H, W) in [0, 1], and what covers, (H, W, 3) of 0 to 255."""

    cover: np.ndarray
    color: np.ndarray


def paint_defect(
    image: np.ndarray, foreground: np.ndarray, kind: str, rng: np.random.Generator, sizes: DefectSizes | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one defect onto the object.

    ``stain``: a blotch with a ragged, soft edge whose color keeps the light and shade of the surface below it.
    ``missing``: a ragged piece, mostly at the outline, where the background beside the object is seen instead.
    ``scratch``: a thin, bent line, lighter or darker than the surface.

    Args:
        image: photograph (H, W, 3) of uint8.
        foreground: pixels (H, W) of bool that show the object.
        kind: one of ``PAINTED_DEFECTS``.
        rng: source of place, shape and color.
        sizes: how large the defect is; None for the defaults.

    Returns:
        The photograph (H, W, 3) of uint8 with the defect, and the defect's pixels (H, W) of bool: all lie on the
        object, and all others are as they were.

    Raises:
        ValueError: if the kind is unknown, or no place was found where the defect would be seen.
    """
    if kind not in _KINDS:
        msg = f"A painted defect is one of {', '.join(_KINDS)}, got {kind!r}."
        raise ValueError(msg)
    sizes = sizes or DefectSizes()
    for _ in range(_TRIES if foreground.any() else 0):
        painted = _KINDS[kind](image.astype(np.float64), foreground, rng, sizes)
        if painted is None:
            continue
        cover = np.where(foreground & (painted.cover >= _LEAST_COVER), painted.cover, 0.0)[..., None]
        spoiled = np.clip(image + cover * (painted.color - image) + 0.5, 0, 255).astype(np.uint8)
        mask = cover[..., 0] > 0
        change = np.abs(spoiled.astype(np.int16) - image).max(2)
        if mask.sum() >= _LEAST_PIXELS and change[mask].mean() >= 255 * LEAST_CONTRAST:
            return spoiled, mask
    msg = (
        f"No place for a defect of the kind {kind} was found on an object of {int(foreground.sum())} pixels: "
        "use a larger image, other sizes or another seed."
    )
    raise ValueError(msg)


def _stain(image: np.ndarray, foreground: np.ndarray, rng: np.random.Generator, sizes: DefectSizes) -> _Paint:
    rows, columns = np.nonzero(foreground)
    chosen = int(rng.integers(len(rows)))
    cover = _blotch(foreground, (rows[chosen], columns[chosen]), rng.uniform(*sizes.stain_area), 0.25, rng)
    luminance = image @ _LUMINANCE
    level = max(1.0, float(luminance[cover > 0].mean()))
    shading = np.clip(luminance / level, 0.3, 1.7)[..., None]
    tint = np.array(STAIN_COLORS[int(rng.integers(len(STAIN_COLORS)))])
    if level < 0.3 * 255:
        tint = 0.55 + 0.6 * tint  # a dark stain is not seen on a dark surface
    return _Paint(cover * rng.uniform(0.75, 0.95), 255 * tint * shading)


def _missing(image: np.ndarray, foreground: np.ndarray, rng: np.random.Generator, sizes: DefectSizes) -> _Paint:
    outline = foreground & ~ndimage.binary_erosion(foreground, border_value=1)
    at_outline = outline.any() and rng.uniform() < _AT_OUTLINE
    rows, columns = np.nonzero(outline if at_outline else foreground)
    chosen = int(rng.integers(len(rows)))
    share = rng.uniform(*sizes.missing_area)
    radius = np.sqrt(share * foreground.sum() / np.pi)
    cover = _blotch(foreground, (rows[chosen], columns[chosen]), share, min(0.5, 1.5 / radius), rng)
    return _Paint(cover, _background(image, foreground, radius / 3))


def _background(image: np.ndarray, foreground: np.ndarray, sigma: float) -> np.ndarray:
    """The photograph with the nearest background where the object is, smoothed there; white without a background."""
    outside = ~ndimage.binary_dilation(foreground, iterations=_BEYOND_OUTLINE)
    if not outside.any():
        outside = ~foreground
    if not outside.any():
        return np.full_like(image, 255.0)
    nearest = ndimage.distance_transform_edt(~outside, return_distances=False, return_indices=True)
    return ndimage.gaussian_filter(image[nearest[0], nearest[1]], (sigma, sigma, 0), mode="nearest")


def _blotch(
    foreground: np.ndarray, center: tuple[int, int], share: float, softness: float, rng: np.random.Generator
) -> np.ndarray:
    """Cover (H, W) of a ragged patch around a pixel (row, column), a share of the object's pixels large.

    Args:
        foreground: pixels (H, W) that show the object.
        center: row and column.
        share: of the object's pixels.
        softness: width of the edge, as a share of the patch's radius.
        rng: source of the outline.
    """
    places = np.argwhere(foreground)
    count = max(1, round(share * len(places)))
    local = (places - np.array(center)) / max(1.0, np.sqrt(count / np.pi))
    edge = np.linalg.norm(local, axis=1) + 0.3 * waves(local, rng, 2.0) + 0.12 * waves(local, rng, 6.0)
    limit = np.partition(edge, count - 1)[count - 1]
    cover = np.zeros(foreground.shape)
    cover[places[:, 0], places[:, 1]] = np.clip((limit - edge) / softness, 0, 1)
    return cover


def _scratch(image: np.ndarray, foreground: np.ndarray, rng: np.random.Generator, sizes: DefectSizes) -> _Paint | None:
    extent = float(np.sqrt(foreground.sum()))
    length, width = extent * rng.uniform(*sizes.scratch_length), max(1.0, extent * rng.uniform(*sizes.scratch_width))
    rows, columns = np.nonzero(foreground)
    chosen = int(rng.integers(len(rows)))
    bends = rng.normal(scale=0.6) / _SCRATCH_STEPS + rng.normal(scale=0.06, size=_SCRATCH_STEPS)
    headings = rng.uniform(0, 2 * np.pi) + bends.cumsum()
    steps = np.stack([np.cos(headings), np.sin(headings)], 1) * length / _SCRATCH_STEPS
    points = np.array([columns[chosen], rows[chosen]]) + 0.5 + steps.cumsum(0)
    canvas = np.zeros((foreground.shape[0] * _FINER, foreground.shape[1] * _FINER), np.uint8)
    corners = np.round(points * _FINER - 0.5).astype(np.int32)
    cv2.polylines(canvas, [corners[:, None]], isClosed=False, color=255, thickness=max(1, round(width * _FINER)))
    line = cv2.resize(canvas, foreground.shape[::-1], interpolation=cv2.INTER_AREA) / 255
    lighter, strength = rng.uniform() < 0.5, rng.uniform(0.6, 0.9)
    inside = (points > 0).all() and (points < foreground.shape[::-1]).all()
    if not inside or line[foreground].sum() < 0.9 * line.sum():
        return None
    return _Paint(line * strength, 0.25 * image + 0.75 * 255 if lighter else 0.3 * image)


_KINDS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator, DefectSizes], _Paint | None]] = {
    "stain": _stain,
    "missing": _missing,
    "scratch": _scratch,
}
PAINTED_DEFECTS = tuple(_KINDS)
"""The kinds of defects that can be painted."""
