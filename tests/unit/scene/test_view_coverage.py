# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch

from anomalib_pose.geometry import Camera, look_at
from anomalib_pose.scene.view_coverage import has_sparse_views, median_view_spacing, warn_about_sparse_views


def ring(count: int, step: float) -> Camera:
    """Cameras on a circle about a point beside the origin, ``step`` degrees apart."""
    center = torch.tensor([5.0, -2.0, 1.0])
    angles = torch.deg2rad(step * torch.arange(count))
    eyes = center + 3 * torch.stack([angles.cos(), angles.sin(), torch.zeros(count)], 1)
    up = torch.tensor([0.0, 0.0, 1.0])
    return Camera.from_fov(torch.stack([look_at(eye, center, up) for eye in eyes]), 0.7, 32, 32)


@pytest.mark.parametrize("step", [3.0, 12.0, 40.0])
def test_spacing_is_the_angle_between_neighbors(step):
    assert median_view_spacing(ring(7, step)) == pytest.approx(step, abs=0.01)


def test_views_far_apart_are_few():
    assert not has_sparse_views(ring(30, 12.0))
    assert has_sparse_views(ring(8, 45.0))
    assert has_sparse_views(ring(1, 1.0))


def test_few_views_are_told_with_the_path_that_is_taken(caplog):
    with caplog.at_level(logging.WARNING):
        warn_about_sparse_views(ring(8, 45.0), masked=True, attenuates_unsupported=True, has_patch_memory=True)
        assert "8 views with a median of 45 degrees between neighbors are few" in caplog.text
        assert "begins at the hull of the masks; what none of the nearest photographs shows" in caplog.text
        assert "counts less; scores get the share" in caplog.text
        caplog.clear()
        warn_about_sparse_views(ring(8, 45.0), masked=False, attenuates_unsupported=False, has_patch_memory=False)
        assert "random points in front of the cameras, for there are no masks; there is no memory" in caplog.text
        warn_about_sparse_views(ring(1, 1.0), masked=True, attenuates_unsupported=True, has_patch_memory=False)
        assert "One view is too few" in caplog.text
