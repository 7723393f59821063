# SPDX-License-Identifier: Apache-2.0
"""Pictures and files of scored clouds, read by other programs."""

import cv2
import numpy as np
import pytest
import torch

from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings, render_organized, render_unorganized
from anomalib_pose.models.point_ad.cloud_grid import CloudGrid
from anomalib_pose.models.point_ad.pictures import (
    heat_colors,
    render_scored_cloud,
    render_view_sheet,
    write_scored_cloud,
)

SIZE = 40


def bowl():
    """Create a bowl of 40 x 40 points with high scores in its right half."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    inside = x**2 + y**2 < 0.9
    xyz = torch.stack([x, y, 3 + 0.3 * (x**2 + y**2)], -1) * inside[..., None]
    return xyz, (0.2 + 0.6 * (x > 0)) * inside


def grid_of(cloud):
    return CloudGrid(cloud.points, cloud.valid, cloud.organized, cloud.pixels, cloud.visible)


def hot_and_cold(picture):
    """Return the columns of reddish and of bluish pixels."""
    red, _, blue = picture
    return (red > blue + 0.1).nonzero()[:, 1], (blue > red + 0.1).nonzero()[:, 1]


def test_colors_are_those_of_turbo():
    values = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    expected = cv2.applyColorMap((values * 255).round().byte().numpy(), cv2.COLORMAP_TURBO)[..., ::-1]
    np.testing.assert_array_equal(heat_colors(values).numpy(), expected)
    assert torch.equal(heat_colors(torch.tensor([-1.0, 3.0])), heat_colors(torch.tensor([0.0, 1.0])))


@pytest.mark.parametrize("organized", [True, False])
def test_the_hot_half_of_the_cloud_is_red(organized):
    xyz, values = bowl()
    if organized:
        cloud = render_organized(xyz, RenderSettings(size=SIZE))
    else:
        points = xyz[xyz[..., 2] > 0]
        cloud = render_unorganized(points, torch.zeros(len(points), dtype=torch.bool), RenderSettings(size=SIZE))
        values = 0.2 + 0.6 * (cloud.points[..., 0] > 0)
    picture = render_scored_cloud(grid_of(cloud), values)
    assert picture.shape == (3, SIZE, SIZE)
    hot, cold = hot_and_cold(picture)
    assert min(len(hot), len(cold)) > 100
    assert (hot >= SIZE // 2 - 2).float().mean() > 0.98
    assert (cold <= SIZE // 2 + 2).float().mean() > 0.98
    assert torch.equal(picture[:, 0, 0], torch.ones(3))


def test_each_view_shows_its_scores_and_keeps_its_background():
    xyz, values = bowl()
    cloud = render_organized(xyz, RenderSettings.of_views(5, SIZE))
    sheet = render_view_sheet(cloud.views / 255, grid_of(cloud), values)
    assert sheet.shape == (3, 3 * (SIZE + 1) + 1, 3 * (SIZE + 1) + 1)
    for index in range(5):
        top, left = (1 + (SIZE + 1) * position for position in divmod(index, 3))
        picture = sheet[:, top : top + SIZE, left : left + SIZE]
        hot, cold = hot_and_cold(picture)
        assert min(len(hot), len(cold)) > 50
        assert hot.float().mean() > cold.float().mean() + 5
        background = (cloud.views[index] == 255).all(0)
        assert (picture[:, background] == 1).all()
    assert (sheet[:, -SIZE:-1, -SIZE:-1] == 1).all()


def test_files_are_read_by_other_programs(tmp_path):
    trimesh = pytest.importorskip("trimesh", reason="the extra mesh is not installed")
    g = torch.Generator().manual_seed(0)
    points, values = torch.rand(50, 3, generator=g), torch.rand(50, generator=g)
    path = tmp_path / "new" / "cloud.ply"
    write_scored_cloud(path, points, values)
    read = trimesh.load(path)
    np.testing.assert_array_equal(read.vertices.astype(np.float32), points.numpy())
    np.testing.assert_array_equal(read.colors[:, :3], heat_colors(values).numpy())
    stored = read.metadata["_ply_raw"]["vertex"]["data"]["score"]
    np.testing.assert_array_equal(np.asarray(stored).ravel(), values.numpy())
    assert [file.name for file in path.parent.iterdir()] == ["cloud.ply"]
