# SPDX-License-Identifier: Apache-2.0
"""Contributions of Gaussians to an image, against renderings in which one Gaussian at a time is bright."""

from dataclasses import replace

import pytest
import torch

from anomalib_pose.render import make_rasterizer
from anomalib_pose.render.contributions import gaussian_contributions
from sample_scenes import CAMERA, make_scene


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_contribution_is_the_brightness_that_one_bright_gaussian_adds(mode):
    gaussians, rasterizer, expected = make_scene().activated(), make_rasterizer("cpu"), []
    for index in range(len(gaussians.means)):
        colors = torch.zeros_like(gaussians.means)
        colors[index] = 1
        rgb = rasterizer(replace(gaussians, colors=colors, sh_degree=None), CAMERA).rgb
        expected.append(rgb[..., 0].double().sum())
    with mode():
        contributions = gaussian_contributions(gaussians, rasterizer, CAMERA)
    assert contributions.max() > 1
    torch.testing.assert_close(contributions.double(), torch.stack(expected), rtol=1e-4, atol=1e-4)
