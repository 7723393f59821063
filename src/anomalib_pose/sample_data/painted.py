# SPDX-License-Identifier: Apache-2.0
"""Synthetic defects painted onto a photograph of an object, given the photograph and the object's mask."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import cv2
import numpy as np
from scipy import ndimage

from anomalib_pose.sample_data.defects import MIN_CONTRAST, STAIN_COLORS, plane_wave_noise

_TRIES = 60
_MIN_PIXELS = 5
_MIN_OPACITY = 0.05  # paint below it is cut off: it is invisible, and would be in the mask
_OUTLINE_MARGIN = 3  # pixels next to the outline show the object, too
_OUTLINE_PROBABILITY = 0.75
_SCRATCH_STEPS = 32
_SUPERSAMPLING = 4
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class DefectSizes:
    """Ranges of the sizes of painted defects, each from a smallest to a largest size.

    The extent of an object is the square root of the number of its pixels.

    Args:
        stain_area: area of a stain, as a fraction of the object's pixels.
        missing_area: area of a missing piece, as a fraction of the object's pixels.
        scratch_length: length of a scratch, as a fraction of the object's extent.
        scratch_width: width of a scratch, as a fraction of the object's extent; at least one pixel.

    Raises:
        ValueError: if a range is not ordered, not above 0, or above its limit: 0.5 for areas, 1 for lengths.
    """

    stain_area: tuple[float, float] = (0.004, 0.03)
    missing_area: tuple[float, float] = (0.004, 0.03)
    scratch_length: tuple[float, float] = (0.15, 0.5)
    scratch_width: tuple[float, float] = (0.004, 0.01)

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            smallest, largest = getattr(self, name)
            limit = 0.5 if name.endswith("area") else 1.0
            if not 0 < smallest <= largest <= limit:
                msg = (
                    f"{name} should be a smallest and a largest size above 0 and up to {limit}, "
                    f"got {smallest} and {largest}."
                )
                raise ValueError(msg)


@dataclass(frozen=True)
class _Paint:
    """Paint over an image: opacity (H, W) in [0, 1], and color (H, W, 3) in [0, 255]."""

    opacity: np.ndarray
    color: np.ndarray


def paint_defect(
    image: np.ndarray, foreground: np.ndarray, kind: str, rng: np.random.Generator, sizes: DefectSizes | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one defect onto the object.

    ``stain``: a blotch with a ragged, soft edge; its color is modulated by the shading of the surface below it.
    ``missing``: a ragged piece, mostly at the outline, replaced by the background beside the object.
    ``scratch``: a thin, bent line, lighter or darker than the surface.

    Args:
        image: photograph (H, W, 3), uint8.
        foreground: mask (H, W) of the object, bool.
        kind: one of ``PAINTED_DEFECTS``.
        rng: random generator of place, shape and color.
        sizes: range of the defect's size; None for the defaults.

    Returns:
        The photograph (H, W, 3), uint8, with the defect, and the mask (H, W), bool, of the defect's pixels. The mask
        lies on the object, and all pixels outside the mask are unchanged.

    Raises:
        ValueError: if the kind does not exist, or no place for a visible defect was found.
    """
    if kind not in _KINDS:
        msg = f"kind should be one of {', '.join(_KINDS)}, got {kind!r}."
        raise ValueError(msg)
    sizes = sizes or DefectSizes()
    for _ in range(_TRIES if foreground.any() else 0):
        paint = _KINDS[kind](image.astype(np.float64), foreground, rng, sizes)
        if paint is None:
            continue
        opacity = np.where(foreground & (paint.opacity >= _MIN_OPACITY), paint.opacity, 0.0)[..., None]
        defective = np.clip(image + opacity * (paint.color - image) + 0.5, 0, 255).astype(np.uint8)
        mask = opacity[..., 0] > 0
        change = np.abs(defective.astype(np.int16) - image).max(2)
        if mask.sum() >= _MIN_PIXELS and change[mask].mean() >= 255 * MIN_CONTRAST:
            return defective, mask
    msg = (
        f"No place for a defect of kind {kind} was found on an object of {int(foreground.sum())} pixels: "
        "use a larger image, other sizes or another seed."
    )
    raise ValueError(msg)


def _stain(image: np.ndarray, foreground: np.ndarray, rng: np.random.Generator, sizes: DefectSizes) -> _Paint:
    rows, columns = np.nonzero(foreground)
    center = int(rng.integers(len(rows)))
    opacity = _blotch(foreground, (rows[center], columns[center]), rng.uniform(*sizes.stain_area), 0.25, rng)
    luminance = image @ _LUMINANCE
    level = max(1.0, float(luminance[opacity > 0].mean()))
    shading = np.clip(luminance / level, 0.3, 1.7)[..., None]
    tint = np.array(STAIN_COLORS[int(rng.integers(len(STAIN_COLORS)))])
    if level < 0.3 * 255:
        tint = 0.55 + 0.6 * tint  # a dark stain is invisible on a dark surface
    return _Paint(opacity * rng.uniform(0.75, 0.95), 255 * tint * shading)


def _missing(image: np.ndarray, foreground: np.ndarray, rng: np.random.Generator, sizes: DefectSizes) -> _Paint:
    outline = foreground & ~ndimage.binary_erosion(foreground, border_value=1)
    at_outline = outline.any() and rng.uniform() < _OUTLINE_PROBABILITY
    rows, columns = np.nonzero(outline if at_outline else foreground)
    center = int(rng.integers(len(rows)))
    area = rng.uniform(*sizes.missing_area)
    radius = np.sqrt(area * foreground.sum() / np.pi)
    opacity = _blotch(foreground, (rows[center], columns[center]), area, min(0.5, 1.5 / radius), rng)
    return _Paint(opacity, _background(image, foreground, radius / 3))


def _background(image: np.ndarray, foreground: np.ndarray, sigma: float) -> np.ndarray:
    """Extend the nearest background over the object, and smooth it; white if there is no background."""
    outside = ~ndimage.binary_dilation(foreground, iterations=_OUTLINE_MARGIN)
    if not outside.any():
        outside = ~foreground
    if not outside.any():
        return np.full_like(image, 255.0)
    nearest = ndimage.distance_transform_edt(~outside, return_distances=False, return_indices=True)
    return ndimage.gaussian_filter(image[nearest[0], nearest[1]], (sigma, sigma, 0), mode="nearest")


def _blotch(
    foreground: np.ndarray, center: tuple[int, int], area: float, softness: float, rng: np.random.Generator
) -> np.ndarray:
    """Make the opacity (H, W) of a ragged patch on the object.

    Args:
        foreground: mask (H, W) of the object.
        center: row and column of the patch's center.
        area: area of the patch, as a fraction of the object's pixels.
        softness: width of the edge, as a fraction of the patch's radius.
        rng: random generator of the outline.
    """
    positions = np.argwhere(foreground)
    count = max(1, round(area * len(positions)))
    local = (positions - np.array(center)) / max(1.0, np.sqrt(count / np.pi))
    edge = (
        np.linalg.norm(local, axis=1)
        + 0.3 * plane_wave_noise(local, rng, 2.0)
        + 0.12 * plane_wave_noise(local, rng, 6.0)
    )
    limit = np.partition(edge, count - 1)[count - 1]
    opacity = np.zeros(foreground.shape)
    opacity[positions[:, 0], positions[:, 1]] = np.clip((limit - edge) / softness, 0, 1)
    return opacity


def _scratch(image: np.ndarray, foreground: np.ndarray, rng: np.random.Generator, sizes: DefectSizes) -> _Paint | None:
    extent = float(np.sqrt(foreground.sum()))
    length, width = extent * rng.uniform(*sizes.scratch_length), max(1.0, extent * rng.uniform(*sizes.scratch_width))
    rows, columns = np.nonzero(foreground)
    center = int(rng.integers(len(rows)))
    bends = rng.normal(scale=0.6) / _SCRATCH_STEPS + rng.normal(scale=0.06, size=_SCRATCH_STEPS)
    headings = rng.uniform(0, 2 * np.pi) + bends.cumsum()
    steps = np.stack([np.cos(headings), np.sin(headings)], 1) * length / _SCRATCH_STEPS
    points = np.array([columns[center], rows[center]]) + 0.5 + steps.cumsum(0)
    canvas = np.zeros((foreground.shape[0] * _SUPERSAMPLING, foreground.shape[1] * _SUPERSAMPLING), np.uint8)
    corners = np.round(points * _SUPERSAMPLING - 0.5).astype(np.int32)
    cv2.polylines(
        canvas, [corners[:, None]], isClosed=False, color=255, thickness=max(1, round(width * _SUPERSAMPLING))
    )
    line = cv2.resize(canvas, foreground.shape[::-1], interpolation=cv2.INTER_AREA) / 255
    is_lighter, strength = rng.uniform() < 0.5, rng.uniform(0.6, 0.9)
    is_inside = (points > 0).all() and (points < foreground.shape[::-1]).all()
    if not is_inside or line[foreground].sum() < 0.9 * line.sum():
        return None
    return _Paint(line * strength, 0.25 * image + 0.75 * 255 if is_lighter else 0.3 * image)


_KINDS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator, DefectSizes], _Paint | None]] = {
    "stain": _stain,
    "missing": _missing,
    "scratch": _scratch,
}
PAINTED_DEFECTS = tuple(_KINDS)
"""The kinds of defects that can be painted."""
