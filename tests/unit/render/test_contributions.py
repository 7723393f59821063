# SPDX-License-Identifier: Apache-2.0
"""What an image shows of each Gaussian, by switching them on one by one."""

from dataclasses import replace

import pytest
import torch

from anomalib_pose.render import make_rasterizer
from anomalib_pose.render.contributions import seen_weights
from sample_scenes import CAMERA, make_scene


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_weights_are_what_each_gaussian_adds_when_it_alone_is_bright(mode):
    gaussians, rasterizer, expected = make_scene().activated(), make_rasterizer("cpu"), []
    for index in range(len(gaussians.means)):
        colors = torch.zeros_like(gaussians.means)
        colors[index] = 1
        shown = rasterizer(replace(gaussians, colors=colors, sh_degree=None), CAMERA).rgb
        expected.append(shown[..., 0].double().sum())
    with mode():
        found = seen_weights(gaussians, rasterizer, CAMERA)
    assert found.max() > 1
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-4, atol=1e-4)
