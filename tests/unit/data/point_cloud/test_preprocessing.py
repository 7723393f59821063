# SPDX-License-Identifier: Apache-2.0
"""Removal of the plane and of stray points, on synthetic scenes with known truth and against DBSCAN on a real one."""

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN

from anomalib_pose.data.images import pad_to_square
from anomalib_pose.data.point_cloud.files import read_xyz
from anomalib_pose.data.point_cloud.preprocessing import (
    isolate_object,
    largest_component,
    plane_distance,
)

HEIGHT, WIDTH, STEP = 80, 110, 0.001
NORMAL = np.array([0.1, -0.2, 1.0]) / np.linalg.norm([0.1, -0.2, 1.0])


def scene(seed=0):
    """A tilted table with a box, a smaller box, and single flying points.

    Returns:
        Cloud (H, W, 3), and a map (H, W) of its parts: 0 table, 1 box, 2 smaller box, 3 flying points.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH] * STEP
    parts = np.zeros((HEIGHT, WIDTH), int)
    parts[20:50, 20:50], parts[60:68, 60:68] = 1, 2
    parts[30, 80], parts[40, 90] = 3, 3
    height = np.choose(parts, [0.0, 0.03, 0.02, 0.015]) + rng.normal(0, 2e-4, parts.shape)
    z = 0.5 - (0.1 * x - 0.2 * y) - height
    xyz = np.stack([x, y, z], -1)
    xyz[rng.random(parts.shape) < 0.05] = 0
    xyz[:3] = 0
    return torch.from_numpy(xyz.astype(np.float32)), torch.from_numpy(parts)


def test_plane_distance_is_the_distance_to_the_table():
    xyz, parts = scene()
    distance = plane_distance(xyz)
    valid = xyz[..., 2] != 0
    expected = np.abs((xyz.double().numpy() - [0, 0, 0.5]) @ NORMAL)
    np.testing.assert_allclose(distance[valid].numpy(), expected[valid.numpy()], atol=3e-4)
    assert distance[valid & (parts == 0)].max() < 0.002


def test_table_is_found_though_the_object_reaches_the_border():
    xyz, _ = scene()
    xyz[:, :35][xyz[:, :35, 2] != 0] -= torch.tensor([0, 0, 0.05])
    distance = plane_distance(xyz)
    valid = xyz[..., 2] != 0
    valid[:, :60] = False
    assert distance[valid & (scene()[1] == 0)].max() < 0.002


def test_same_seed_same_plane():
    xyz, _ = scene()
    assert torch.equal(plane_distance(xyz, 3), plane_distance(xyz, 3))


def test_only_the_object_is_left():
    xyz, parts = scene()
    image = torch.rand(3, HEIGHT, WIDTH) * 0.5 + 0.5
    gt = (parts == 1).float()
    object_xyz, rgb, mask = isolate_object(xyz, image, gt)
    assert object_xyz.shape == (200, 200, 3)
    top, left = (200 - HEIGHT) // 2, (200 - WIDTH) // 2
    inside = (slice(top, top + HEIGHT), slice(left, left + WIDTH))
    expected = torch.where(((parts == 1) & (xyz[..., 2] != 0))[..., None], xyz, 0)
    assert torch.equal(object_xyz[inside], expected)
    assert int((object_xyz[..., 2] != 0).sum()) == int((expected[..., 2] != 0).sum())
    empty = xyz[..., 2] == 0
    assert torch.equal(rgb[:, *inside], torch.where((parts == 1) | empty, image, 0))
    assert torch.equal(mask[inside], gt)
    assert mask.sum() == gt.sum()


def test_parts_at_different_depths_are_separate_components():
    xyz = torch.zeros(40, 40, 3)
    y, x = torch.meshgrid(torch.arange(40) * STEP, torch.arange(40) * STEP, indexing="ij")
    xyz[..., 0], xyz[..., 1], xyz[..., 2] = x, y, 0.5
    xyz[:, 24:, 2] = 0.52
    component = largest_component(xyz)
    assert component[:, :24].all()
    assert not component[:, 24:].any()


def test_largest_component_is_that_of_dbscan(shared):
    path = shared / "data" / "mvtec3d_subset" / "cable_gland" / "test" / "bent" / "xyz" / "000.tiff"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    xyz = read_xyz(path)[::2, ::2].contiguous()
    valid = (xyz[..., 2] != 0) & (plane_distance(xyz) > 0.005)
    xyz = torch.where(valid[..., None], xyz, 0)
    labels = DBSCAN(eps=0.006, min_samples=30).fit_predict(xyz[valid].numpy())
    expected = torch.zeros_like(valid)
    expected[valid] = torch.from_numpy(labels == np.bincount(labels[labels >= 0]).argmax())
    component = largest_component(xyz)
    assert (component != expected).sum() < 0.01 * expected.sum()


@pytest.mark.parametrize(("size", "side"), [((80, 110), 200), ((100, 100), 100), ((3, 301), 400)])
def test_padding_to_squares_whose_side_is_a_multiple_of_100(size, side):
    channels = torch.rand(2, *size)
    padded = pad_to_square(channels, multiple=100)
    assert padded.shape == (2, side, side)
    torch.testing.assert_close(padded.sum(), channels.sum())


def test_without_points_at_the_border_no_plane_is_removed():
    xyz, parts = scene()
    only = torch.where((parts == 1)[..., None], xyz, 0)
    assert plane_distance(only) is None
    assert int((isolate_object(only)[0][..., 2] != 0).sum()) == int((only[..., 2] != 0).sum())


def test_wrong_sizes_units_and_empty_results_are_refused():
    xyz, _ = scene()
    with pytest.raises(ValueError, match="should be one size"):
        isolate_object(xyz, torch.zeros(3, HEIGHT, WIDTH + 1))
    with pytest.raises(ValueError, match="should be one size"):
        isolate_object(xyz, None, torch.zeros(HEIGHT + 1, WIDTH))
    with pytest.raises(ValueError, match="expected an object in meters"):
        isolate_object(xyz * 1000)
    table = torch.where((scene()[1] == 0)[..., None], xyz, 0)
    with pytest.raises(ValueError, match="Nothing is left"):
        isolate_object(table)
