# SPDX-License-Identifier: Apache-2.0
import copy
from dataclasses import replace

import pytest
import torch

from anomalib_pose.deploy.graph.gaussian_rasterizer import GaussianRasterizerGraph, _place_tiles, find_visible_gaussians
from anomalib_pose.deploy.graph.gaussian_tiles import Tiles, _log, merge_groups, sort_by_occupancy, split_into_groups
from anomalib_pose.deploy.graph.resample import window_matrix
from anomalib_pose.deploy.graph.tile_capacity import TileCapacity
from anomalib_pose.deploy.graph.view_synthesis import GraphRendering
from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.render import Gaussians, make_rasterizer
from sample_scenes import make_toy

LARGE, SMALL = 192, 96
CAMERA = Camera.from_fov(torch.eye(4), 0.7, LARGE, LARGE)
POSES = view_sphere(12, 3.0, 1.2, -1.2)
QUERIES = view_sphere(3, 3.1, 1.0, -1.0, azimuth_offset=0.3)
UNIT = 3.0
INTRINSICS = CAMERA.resized(SMALL, SMALL).K[[0, 1, 0, 1], [0, 1, 2, 2]]


def in_units(poses: torch.Tensor) -> torch.Tensor:
    poses = poses.clone()
    poses[:, :3, 3] /= UNIT
    return poses


def near(poses: torch.Tensor, count: int = 12) -> torch.Tensor:
    return torch.cdist(poses[:, :3, 3], POSES[:, :3, 3]).topk(count, largest=False).indices


def build_rasterizer(gaussians: Gaussians, oversampling: float = 1.0) -> GaussianRasterizerGraph:
    visible = torch.ones(len(POSES), len(gaussians), dtype=torch.bool)
    cameras = (in_units(POSES), INTRINSICS.expand(len(POSES), 4), near(POSES, 3))
    size, around = (SMALL, SMALL), near(POSES, 3)
    return GaussianRasterizerGraph.with_measured_capacity(
        gaussians, UNIT, visible, size, cameras, around, SMALL / LARGE, oversampling
    )


def crop(image: torch.Tensor) -> torch.Tensor:
    """Resize a photograph (..., LARGE, LARGE) to the size of the rasterized images."""
    rows = window_matrix(LARGE, SMALL, 0, 1, image)
    return rows @ image @ rows.T


@pytest.mark.parametrize(
    ("degree", "oversampling", "tolerance"), [(0, 1, 8e-3), (2, 1, 8e-3), (2, 1.25, 4e-3), (2, 2, 1e-3)]
)
def test_the_graph_agrees_with_the_resized_image_of_its_twin(degree, oversampling, tolerance):
    gaussians = make_toy().activated()
    colors = 0.3 * torch.randn(len(gaussians), (degree + 1) ** 2, 3, generator=torch.Generator().manual_seed(0))
    colors[:, :1] = gaussians.colors[:, :1]
    gaussians = replace(gaussians, colors=colors, sh_degree=degree)
    rasterizer = build_rasterizer(gaussians, oversampling)
    actual = rasterizer(in_units(QUERIES), INTRINSICS.expand(len(QUERIES), 4), near(QUERIES))
    output = make_rasterizer("cpu")(gaussians, CAMERA.with_pose(QUERIES), torch.ones(3))
    assert (output.alpha.amax((1, 2)) > 0.5).all()
    alpha = crop(output.alpha)
    difference = (actual.rgb - crop(output.rgb.permute(0, 3, 1, 2))).abs()
    assert difference[alpha[:, None].expand_as(difference) > 0.05].mean() < tolerance
    assert (actual.alpha - alpha)[alpha > 0.05].abs().mean() < tolerance
    small = make_rasterizer("cpu")(gaussians, CAMERA.resized(SMALL, SMALL).with_pose(QUERIES))
    growth = [float(image.sum() / alpha.sum()) - 1 for image in (actual.alpha, small.alpha)]
    assert abs(growth[0]) < 0.6 * growth[1]  # rendered small, the object grows by the blur of its Gaussians
    depth = crop(output.alpha * output.depth) / alpha.clamp(min=1e-6)
    assert (UNIT * actual.depth - depth)[alpha > 0.9].abs().mean() < 5e-3


def test_images_of_a_batch_do_not_depend_on_each_other():
    rasterizer = build_rasterizer(make_toy().activated())
    batch = rasterizer(in_units(QUERIES), INTRINSICS.expand(len(QUERIES), 4), near(QUERIES))
    for index in range(len(QUERIES)):
        one = slice(index, index + 1)
        single = rasterizer(in_units(QUERIES[one]), INTRINSICS[None], near(QUERIES[one]))
        torch.testing.assert_close(batch.rgb[one], single.rgb, atol=1e-5, rtol=0)


def wall_and_ball() -> Gaussians:
    """An opaque red wall in front of a small blue ball, both on the optical axis of a camera at the origin."""
    means = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    scales = torch.tensor([[3.0, 3.0, 0.01], [0.05, 0.05, 0.05]])
    colors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return Gaussians(means, torch.tensor([[1.0, 0, 0, 0]] * 2), scales, torch.tensor([0.999, 0.9]), colors)


def test_gaussians_behind_a_wall_are_not_visible():
    behind = torch.eye(4)
    behind[:3, :3], behind[2, 3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0])), 5.0
    cameras = CAMERA.with_pose(torch.stack([torch.eye(4), behind]))
    visible = find_visible_gaussians(wall_and_ball(), make_rasterizer("cpu"), cameras)
    assert visible.tolist() == [[True, False], [True, True]]


def test_invisible_gaussians_are_not_rasterized():
    gaussians = make_toy().activated()
    none = torch.zeros(len(POSES), len(gaussians), dtype=torch.bool)
    whole = build_rasterizer(gaussians)
    blind = GaussianRasterizerGraph(gaussians, UNIT, none, (SMALL, SMALL), whole.capacity, SMALL / LARGE)
    arguments = in_units(QUERIES), INTRINSICS.expand(len(QUERIES), 4), near(QUERIES)
    assert whole(*arguments).alpha.amax() > 0.9
    assert not blind(*arguments).alpha.any()
    assert torch.equal(blind(*arguments).rgb, torch.ones(len(QUERIES), 3, SMALL, SMALL))


def test_the_capacity_covers_the_union_of_neighboring_views():
    """Each view sees Gaussians of its own; cameras between them see more than the measured views."""
    gaussians = make_toy().activated()
    visible = torch.arange(len(gaussians)) % len(POSES) == torch.arange(len(POSES))[:, None]
    measured = in_units(POSES[:1]), INTRINSICS[None], torch.zeros(1, 1, dtype=torch.long)
    neighborhoods = torch.arange(len(POSES)).expand(len(POSES), -1)
    rasterizer = GaussianRasterizerGraph.with_measured_capacity(
        gaussians, UNIT, visible, (SMALL, SMALL), measured, neighborhoods, SMALL / LARGE
    )
    assert rasterizer.capacity.image == len(gaussians)


def rasterize_with(
    rasterizer: GaussianRasterizerGraph, capacity: TileCapacity, *camera: torch.Tensor
) -> GraphRendering:
    changed = copy.deepcopy(rasterizer)
    changed.capacity = capacity
    return changed(*camera)


def test_beyond_the_capacity_the_farthest_gaussians_are_left_out():
    gaussians = wall_and_ball()
    gaussians = replace(gaussians, colors=(gaussians.colors[:, None] - 0.5) / 0.28209479177387814, sh_degree=0)
    camera, visible = (torch.eye(4)[None], INTRINSICS[None], torch.zeros(1, 1, dtype=torch.long)), torch.ones(1, 2) > 0
    capacity = TileCapacity(2, (2,) * 5, (2,) * 8, (2,) * 8, 144)
    rasterizer = GaussianRasterizerGraph(gaussians, 1.0, visible, (SMALL, SMALL), capacity, 1.0)
    enough = rasterizer(*camera)
    scarce = rasterize_with(rasterizer, capacity._replace(fine=(1,) * 8), *camera)
    middle = (0, slice(None), SMALL // 2, SMALL // 2)
    torch.testing.assert_close(scarce.rgb[middle], torch.tensor([1.0, 0.0, 0.0]), atol=5e-3, rtol=0)
    torch.testing.assert_close(scarce.rgb, enough.rgb, atol=5e-3, rtol=0)


@pytest.mark.parametrize("poses", [POSES, QUERIES])
def test_the_measured_capacity_is_enough(poses):
    gaussians = make_toy().activated()
    rasterizer = build_rasterizer(gaussians, 1.5)
    unlimited = rasterizer.capacity._replace(
        image=len(gaussians), tiles=324, **{name: (len(gaussians),) * 8 for name in ("middle", "fine")}
    )._replace(coarse=(len(gaussians),) * len(rasterizer.capacity.coarse))
    assert sum(rasterizer.capacity.fine) < 0.7 * 8 * rasterizer.capacity.fine[0]
    camera = in_units(poses), INTRINSICS.expand(len(poses), 4), near(poses, 3)
    actual, expected = rasterizer(*camera), rasterize_with(rasterizer, unlimited, *camera)
    for image, expected_image in zip(actual, expected, strict=True):
        assert (image - expected_image).abs().mean() < 1e-4
    assert (actual.rgb - expected.rgb).abs().max() < 0.011  # Gaussians behind an opacity of 99 % may be missing


def test_tiles_return_to_their_positions():
    images, side, capacity, padding = 2, 5, 11, 30
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, padding, (images, side**2), generator=generator)
    members = torch.where(torch.arange(padding) < counts.flatten()[:, None], torch.arange(padding), padding)
    row, column = (part.flatten().repeat(images) for part in torch.meshgrid([torch.arange(side)] * 2, indexing="ij"))
    tiles = sort_by_occupancy(Tiles(column * 8.0, row * 8.0, members), side**2, capacity, padding)
    groups = split_into_groups(tiles, capacity, tuple(range(padding, padding - 6, -1)))
    values = [group.members[:, :1] + 100 * group.top[:, None] + group.left[:, None] for group in groups]
    merged = merge_groups(values, capacity)
    placed = _place_tiles(merged[:, None, None], tiles, side, capacity).view(images, side, side)
    for image in range(images):
        fullest = counts[image].argsort(descending=True, stable=True)[:capacity].tolist()
        expected = [8 * (100 * (i // side) + i % side) if i in fullest else 0 for i in range(side**2)]
        assert placed[image].flatten().tolist() == expected
    assert [len(group.left) for group in groups] == [4, 4, 4, 4, 4, 2]
    assert [group.members.shape[1] for group in groups] == [30, 29, 28, 27, 26, 25]


def test_the_logarithm_agrees_with_torch():
    values = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    torch.testing.assert_close(_log(values), values.log(), atol=1e-7, rtol=1e-5)
