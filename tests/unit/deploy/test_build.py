# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from anomalib_pose.deploy.build import find_window
from anomalib_pose.geometry import Camera
from sample_detector import CAMERA, POSES, SIZE


@pytest.mark.parametrize("size", [SIZE, 70])
def test_the_window_does_not_jump_where_an_opacity_passes_its_limit(size):
    class Disc:
        def __init__(self, rim: float) -> None:
            self.rim = rim

        def render(self, camera: Camera) -> SimpleNamespace:
            alpha = torch.zeros(1, camera.height, camera.width)
            alpha[:, 20:40, 20:40] = 1
            alpha[:, 30, 41:44] = self.rim
            return SimpleNamespace(alpha=alpha)

    camera = CAMERA.resized(size, size)
    rims = torch.linspace(0.099, 0.101, 2001).tolist()
    ends = [sum(find_window(Disc(rim), POSES[:1], camera)[::2]) for rim in rims]
    assert ends[-1] - ends[0] > 3.9 / 64
    assert max(abs(after - before) for before, after in pairwise(ends)) < 0.01 / 64
