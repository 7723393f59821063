# SPDX-License-Identifier: Apache-2.0
import copy
from dataclasses import replace

import pytest
import torch

from anomalib_pose.deploy.graph.gaussian_rasterizer import GaussianDrawing, _placed, seen_gaussians
from anomalib_pose.deploy.graph.gaussian_tiles import Tiles, _logarithm, fullest_first, in_groups, together
from anomalib_pose.deploy.graph.resample import window_matrix
from anomalib_pose.deploy.graph.tile_capacity import Room
from anomalib_pose.deploy.graph.view_synthesis import Synthesis
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


def drawing_of(gaussians: Gaussians, oversampling: float = 1.0) -> GaussianDrawing:
    visible = torch.ones(len(POSES), len(gaussians), dtype=torch.bool)
    cameras = (in_units(POSES), INTRINSICS.expand(len(POSES), 4), near(POSES, 3))
    size, around = (SMALL, SMALL), near(POSES, 3)
    return GaussianDrawing.measured(gaussians, UNIT, visible, size, cameras, around, SMALL / LARGE, oversampling)


def cut(image: torch.Tensor) -> torch.Tensor:
    """A photograph (..., LARGE, LARGE) in the size of the drawings."""
    rows = window_matrix(LARGE, SMALL, 0, 1, image)
    return rows @ image @ rows.T


@pytest.mark.parametrize(("degree", "oversampling", "off"), [(0, 1, 8e-3), (2, 1, 8e-3), (2, 1.25, 4e-3), (2, 2, 1e-3)])
def test_a_drawing_is_the_photograph_in_its_size(degree, oversampling, off):
    gaussians = make_toy().activated()
    colors = 0.3 * torch.randn(len(gaussians), (degree + 1) ** 2, 3, generator=torch.Generator().manual_seed(0))
    colors[:, :1] = gaussians.colors[:, :1]
    gaussians = replace(gaussians, colors=colors, sh_degree=degree)
    drawing = drawing_of(gaussians, oversampling)
    found = drawing(in_units(QUERIES), INTRINSICS.expand(len(QUERIES), 4), near(QUERIES))
    output = make_rasterizer("cpu")(gaussians, CAMERA.with_pose(QUERIES), torch.ones(3))
    shown = output.alpha.amax((1, 2)) > 0.5
    assert shown.all()
    alpha = cut(output.alpha)
    differs = (found.rgb - cut(output.rgb.permute(0, 3, 1, 2))).abs()
    assert differs[alpha[:, None].expand_as(differs) > 0.05].mean() < off
    assert (found.alpha - alpha)[alpha > 0.05].abs().mean() < off
    small = make_rasterizer("cpu")(gaussians, CAMERA.resized(SMALL, SMALL).with_pose(QUERIES))
    larger = [float(image.sum() / alpha.sum()) - 1 for image in (found.alpha, small.alpha)]
    assert abs(larger[0]) < 0.6 * larger[1]  # rendered small, the object grows by the blur of its Gaussians
    depth = cut(output.alpha * output.depth) / alpha.clamp(min=1e-6)
    assert (UNIT * found.depth - depth)[alpha > 0.9].abs().mean() < 5e-3


def test_images_of_a_batch_are_drawn_alike():
    drawing = drawing_of(make_toy().activated())
    together = drawing(in_units(QUERIES), INTRINSICS.expand(len(QUERIES), 4), near(QUERIES))
    for index in range(len(QUERIES)):
        one = slice(index, index + 1)
        alone = drawing(in_units(QUERIES[one]), INTRINSICS[None], near(QUERIES[one]))
        torch.testing.assert_close(together.rgb[one], alone.rgb, atol=1e-5, rtol=0)


def wall_and_ball() -> Gaussians:
    """An opaque red wall in front of a small blue ball, both on the optical axis of a camera at the origin."""
    means = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    scales = torch.tensor([[3.0, 3.0, 0.01], [0.05, 0.05, 0.05]])
    colors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return Gaussians(means, torch.tensor([[1.0, 0, 0, 0]] * 2), scales, torch.tensor([0.999, 0.9]), colors)


def test_what_a_wall_hides_is_not_seen():
    behind = torch.eye(4)
    behind[:3, :3], behind[2, 3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0])), 5.0
    cameras = CAMERA.with_pose(torch.stack([torch.eye(4), behind]))
    seen = seen_gaussians(wall_and_ball(), make_rasterizer("cpu"), cameras)
    assert seen.tolist() == [[True, False], [True, True]]


def test_unseen_gaussians_are_not_drawn():
    gaussians = make_toy().activated()
    none = torch.zeros(len(POSES), len(gaussians), dtype=torch.bool)
    whole = drawing_of(gaussians)
    blind = GaussianDrawing(gaussians, UNIT, none, (SMALL, SMALL), whole.room, SMALL / LARGE)
    arguments = in_units(QUERIES), INTRINSICS.expand(len(QUERIES), 4), near(QUERIES)
    assert whole(*arguments).alpha.amax() > 0.9
    assert not blind(*arguments).alpha.any()
    assert torch.equal(blind(*arguments).rgb, torch.ones(len(QUERIES), 3, SMALL, SMALL))


def test_what_views_around_a_camera_see_together_has_room():
    """Each view sees a share of its own; cameras between them need more room than those that were measured."""
    gaussians = make_toy().activated()
    shares = torch.arange(len(gaussians)) % len(POSES) == torch.arange(len(POSES))[:, None]
    measured = in_units(POSES[:1]), INTRINSICS[None], torch.zeros(1, 1, dtype=torch.long)
    several = torch.arange(len(POSES)).expand(len(POSES), -1)
    drawing = GaussianDrawing.measured(gaussians, UNIT, shares, (SMALL, SMALL), measured, several, SMALL / LARGE)
    assert drawing.room.image == len(gaussians)


def drawn_with(drawing: GaussianDrawing, room: Room, *camera: torch.Tensor) -> Synthesis:
    found = copy.deepcopy(drawing)
    found.room = room
    return found(*camera)


def test_without_room_the_farthest_are_left_out():
    gaussians = wall_and_ball()
    gaussians = replace(gaussians, colors=(gaussians.colors[:, None] - 0.5) / 0.28209479177387814, sh_degree=0)
    camera, seen = (torch.eye(4)[None], INTRINSICS[None], torch.zeros(1, 1, dtype=torch.long)), torch.ones(1, 2) > 0
    room = Room(2, (2,) * 5, (2,) * 8, (2,) * 8, 144)
    drawing = GaussianDrawing(gaussians, 1.0, seen, (SMALL, SMALL), room, 1.0)
    enough, scarce = drawing(*camera), drawn_with(drawing, room._replace(fine=(1,) * 8), *camera)
    middle = (0, slice(None), SMALL // 2, SMALL // 2)
    torch.testing.assert_close(scarce.rgb[middle], torch.tensor([1.0, 0.0, 0.0]), atol=5e-3, rtol=0)
    torch.testing.assert_close(scarce.rgb, enough.rgb, atol=5e-3, rtol=0)


@pytest.mark.parametrize("poses", [POSES, QUERIES])
def test_what_is_measured_is_enough(poses):
    gaussians = make_toy().activated()
    drawing = drawing_of(gaussians, 1.5)
    everything = drawing.room._replace(
        image=len(gaussians), tiles=324, **{name: (len(gaussians),) * 8 for name in ("middle", "fine")}
    )._replace(coarse=(len(gaussians),) * len(drawing.room.coarse))
    assert sum(drawing.room.fine) < 0.7 * 8 * drawing.room.fine[0]
    camera = in_units(poses), INTRINSICS.expand(len(poses), 4), near(poses, 3)
    found, whole = drawing(*camera), drawn_with(drawing, everything, *camera)
    for one, other in zip(found, whole, strict=True):
        assert (one - other).abs().mean() < 1e-4
    assert (found.rgb - whole.rgb).abs().max() < 0.011  # what lies behind 99 % may be missing


def test_tiles_go_back_where_they_came_from():
    images, side, room, nobody = 2, 5, 11, 30
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, nobody, (images, side**2), generator=generator)
    members = torch.where(torch.arange(nobody) < counts.flatten()[:, None], torch.arange(nobody), nobody)
    row, column = (part.flatten().repeat(images) for part in torch.meshgrid([torch.arange(side)] * 2, indexing="ij"))
    tiles = fullest_first(Tiles(column * 8.0, row * 8.0, members), side**2, room, nobody)
    groups = in_groups(tiles, room, tuple(range(nobody, nobody - 6, -1)))
    shown = together([group.members[:, :1] + 100 * group.top[:, None] + group.left[:, None] for group in groups], room)
    placed = _placed(shown[:, None, None], tiles, side, room).view(images, side, side)
    for image in range(images):
        kept = counts[image].argsort(descending=True, stable=True)[:room].tolist()
        expected = [8 * (100 * (i // side) + i % side) if i in kept else 0 for i in range(side**2)]
        assert placed[image].flatten().tolist() == expected
    assert [len(group.left) for group in groups] == [4, 4, 4, 4, 4, 2]
    assert [group.members.shape[1] for group in groups] == [30, 29, 28, 27, 26, 25]


def test_logarithm_by_series():
    share = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    torch.testing.assert_close(_logarithm(share), share.log(), atol=1e-7, rtol=1e-5)
