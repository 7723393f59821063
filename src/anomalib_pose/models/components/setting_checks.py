# SPDX-License-Identifier: Apache-2.0
"""Ranges of the numbers among the arguments of the scene models."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple


class Bounds(NamedTuple):
    """Range of a number.

    Args:
        lowest: smallest value.
        highest: largest value.
        whole: only whole numbers are allowed.
        above: ``lowest`` itself is not allowed.
    """

    lowest: float
    highest: float = math.inf
    whole: bool = True
    above: bool = False

    def contain(self, value: Any) -> bool:
        """Return whether a value is a finite number in the range."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        try:
            number = float(value)
        except OverflowError:
            return False
        if not math.isfinite(number) or (self.above and number == self.lowest):
            return False
        return self.lowest <= number <= self.highest

    def __str__(self) -> str:
        """Describe the range."""
        kind = "a whole number" if self.whole else "a finite number"
        if self.lowest > -math.inf:
            kind += f" above {self.lowest:g}" if self.above else f", {self.lowest:g} or more"
        return kind if self.highest == math.inf else f"{kind}, {self.highest:g} at most"


BOUNDS = {
    "steps": Bounds(1),
    "refiner_steps": Bounds(1),
    # The estimator, the view bank and the detector check these three from below.
    "starts": Bounds(-math.inf),
    "bank_spacing": Bounds(0, 180, whole=False, above=True),
    "rolls": Bounds(-math.inf, 360),
    "holdout_every": Bounds(-math.inf),
    "surface_views": Bounds(0),
    "surface_strength": Bounds(0, whole=False),
    "memory_patches": Bounds(0),
    "nearby_views": Bounds(0),
    "max_gaussians": Bounds(1),
    "sh_degree": Bounds(0, 3),
    "seed": Bounds(0, 2**63 - 1),
}
"""Range of each argument that is a number, by name; arguments of other models are not in the table."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the numbers among the arguments of a model.

    Args:
        settings: values by the name of their argument.

    Raises:
        ValueError: if a number is NaN, infinite or out of its range, or a whole number is expected and it has decimals.
    """
    for name, bounds in BOUNDS.items():
        if name in settings and not bounds.contain(settings[name]):
            msg = f"{name} should be {bounds}, got {name}={settings[name]!r}."
            raise ValueError(msg)
