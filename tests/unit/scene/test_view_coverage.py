# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch

from anomalib_pose.geometry import Camera, look_at
from anomalib_pose.scene.view_coverage import has_sparse_views, median_view_spacing, warn_about_sparse_views


def ring(count: int, step: float) -> Camera:
    """Place cameras on a circle about a point beside the origin, ``step`` degrees apart."""
    center = torch.tensor([5.0, -2.0, 1.0])
    angles = torch.deg2rad(step * torch.arange(count))
    eyes = center + 3 * torch.stack([angles.cos(), angles.sin(), torch.zeros(count)], 1)
    up = torch.tensor([0.0, 0.0, 1.0])
    return Camera.from_fov(torch.stack([look_at(eye, center, up) for eye in eyes]), 0.7, 32, 32)


@pytest.mark.parametrize("step", [3.0, 12.0, 40.0])
def test_median_view_spacing_is_the_angle_between_neighbors(step):
    assert median_view_spacing(ring(7, step)) == pytest.approx(step, abs=0.01)


def test_views_far_apart_are_sparse():
    assert not has_sparse_views(ring(30, 12.0))
    assert has_sparse_views(ring(8, 45.0))
    assert has_sparse_views(ring(1, 1.0))


def test_the_warning_names_how_the_model_handles_sparse_views(caplog):
    with caplog.at_level(logging.WARNING):
        warn_about_sparse_views(ring(8, 45.0), masked=True, attenuates_unsupported=True, has_patch_memory=True)
        assert "The 8 training views are sparse: neighbors are 45 degrees apart in the median" in caplog.text
        assert (
            "The fit starts on the visual hull of the masks. Anomalies in regions without view support" in caplog.text
        )
        assert "are attenuated. Held-out views set the mixing weight of the patch memory." in caplog.text
        caplog.clear()
        warn_about_sparse_views(ring(8, 45.0), masked=False, attenuates_unsupported=False, has_patch_memory=False)
        assert "at random points, because there are no masks. There is no patch memory" in caplog.text
        warn_about_sparse_views(ring(1, 1.0), masked=True, attenuates_unsupported=True, has_patch_memory=False)
        assert "One training view is too few" in caplog.text
