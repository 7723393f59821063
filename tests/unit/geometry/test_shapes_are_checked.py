# SPDX-License-Identifier: Apache-2.0
import jaxtyping
import pytest
import torch

from anomalib_pose.compare.maps import squared_difference
from anomalib_pose.geometry import se3_exp


def test_a_wrong_shape_raises():
    with pytest.raises(jaxtyping.TypeCheckError):
        se3_exp(torch.zeros(5))
    with pytest.raises(jaxtyping.TypeCheckError):
        squared_difference(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 5, 4))
