# SPDX-License-Identifier: Apache-2.0
"""Numbers among the arguments of the scene models are checked when the model is built."""

import math

import pytest

from anomalib_pose.models import PIAD, OmniposeAD, SplatPose
from anomalib_pose.models.components.setting_checks import BOUNDS


@pytest.mark.parametrize("name", sorted(set(BOUNDS) - {"surface_strength"}))
@pytest.mark.parametrize("value", [math.nan, math.inf, -5, 2.5, 10**400, True])
def test_implausible_numbers_are_refused(name, value):
    if name == "bank_spacing" and value == 2.5:
        return
    with pytest.raises(ValueError, match=name.replace("starts", "start").replace("bank_spacing", "spacing")):
        SplatPose(**{name: value})


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        (PIAD, {"surface_strength": math.nan}),
        (OmniposeAD, {"steps": 0}),
        (OmniposeAD, {"nearby_views": 1.0}),
        (SplatPose, {"sh_degree": 4}),
        (SplatPose, {"rolls": 1000}),
    ],
)
def test_each_model_checks_its_own_numbers(model_class, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} should be .*, got"):
        model_class(**settings)
