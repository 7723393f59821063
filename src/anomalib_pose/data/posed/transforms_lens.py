# SPDX-License-Identifier: Apache-2.0
"""Focal lengths and lens distortion of one frame of ``transforms.json``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_SUPPORTED = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "FULL_OPENCV", "SIMPLE_RADIAL", "RADIAL")
_COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
_LISTED = ("k1", "k2", "k3", "k4", "p1", "p2")
"""Order of nerfstudio's ``distortion_params``; its k4 is another one than OpenCV's."""
_LARGEST_INTEGER = 2**63


class LensEntry:
    """Lens of one frame.

    Args:
        where: file and frame, for error messages.
        own: the frame's values.
        shared: the values that the file gives for all frames.
    """

    def __init__(self, where: str, own: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
        self.where, self.own, self.shared = where, own, shared
        self.values = {**shared, **own}

    def number(self, values: Mapping[str, Any], key: str, default: float) -> float:
        """Return a finite number.

        Raises:
            ValueError: if it is none.
        """
        value = values.get(key, default)
        if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            value = math.inf
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            msg = f"{self.where} should have a finite number as {key!r}, got {value!r}."
            raise ValueError(msg)
        return float(value)

    def focal(self, width: float, height: float) -> tuple[float, float]:
        """Return the focal lengths in pixels of an image of the given size.

        Raises:
            ValueError: if the frame has none, or a value is out of range.
        """
        for values in (self.own, self.shared):
            if "fl_x" in values:
                focal_x = self._positive(values, "fl_x", math.inf)
                return focal_x, self._positive(values, "fl_y", math.inf, focal_x)
            if "camera_angle_x" in values:
                focal_x = 0.5 * width / math.tan(0.5 * self._positive(values, "camera_angle_x", math.pi))
                if "camera_angle_y" not in values:
                    return focal_x, focal_x
                return focal_x, 0.5 * height / math.tan(0.5 * self._positive(values, "camera_angle_y", math.pi))
        msg = f"{self.where} has no intrinsics: expected 'camera_angle_x' (radians) or 'fl_x' (pixels)."
        raise ValueError(msg)

    def _positive(self, values: Mapping[str, Any], key: str, below: float, default: float = math.nan) -> float:
        number = self.number(values, key, default)
        if not 0 < number < below:
            msg = f"{self.where} should have {key!r} above 0" + ("" if below == math.inf else f" and below {below:.4g}")
            msg += f", got {number:g}."
            raise ValueError(msg)
        return number

    def distortion(self) -> tuple[float, ...]:
        """Return OpenCV's coefficients, see ``opencv_distortion``.

        Raises:
            ValueError: if the camera model is not supported, or a coefficient is not a finite number.
        """
        model = str(self.values.get("camera_model", "OPENCV"))
        if model.upper() not in _SUPPORTED or self.values.get("is_fisheye"):
            model = "fisheye" if self.values.get("is_fisheye") else model
            msg = (
                f"{self.where} has the camera model {model!r}, which is not supported: expected one of "
                f"{', '.join(_SUPPORTED)}. Undistort the images first."
            )
            raise ValueError(msg)
        listed = self.values.get("distortion_params")
        if listed is None:
            return opencv_distortion([self.number(self.values, key, 0) for key in _COEFFICIENTS])
        if not isinstance(listed, list) or len(listed) != len(_LISTED):
            msg = f"{self.where} should have the list {', '.join(_LISTED)} as 'distortion_params', got {listed!r:.60}."
            raise ValueError(msg)
        values = {key: self.number({key: value}, key, 0) for key, value in zip(_LISTED, listed, strict=True)}
        if values["k4"]:
            msg = f"{self.where} has k4 = {values['k4']:g} in 'distortion_params': expected 0. Undistort first."
            raise ValueError(msg)
        return opencv_distortion([values.get(key, 0.0) for key in _COEFFICIENTS])


def opencv_distortion(coefficients: Sequence[float]) -> tuple[float, ...]:
    """Shorten OpenCV's coefficients (k1, k2, p1, p2, k3, k4, k5, k6): 8, 5 if the last three are 0, 0 if all are."""
    if not any(coefficients):
        return ()
    return tuple(coefficients) if any(coefficients[5:]) else tuple(coefficients[:5])
