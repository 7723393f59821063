# SPDX-License-Identifier: Apache-2.0
"""A spot that only photographs show appears in renderings from elsewhere, where the surface is seen that bears it."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.render import RenderOutput
from anomalib_pose.scene import CorrectedScene, NearbyViews
from sample_scenes import make_toy

SIZE = 64
CAMERA = Camera.from_fov(torch.eye(4), 0.7, SIZE, SIZE)
CAMERAS = CAMERA.with_pose(view_sphere(200, 3.0))
QUERIES = CAMERA.with_pose(view_sphere(9, 3.0, 1.2, -1.1))
SPOT = torch.tensor([0.1, 0.9, 0.1])


@pytest.fixture(scope="module")
def scene():
    return make_toy()


@pytest.fixture(scope="module")
def place(scene) -> torch.Tensor:
    output = scene.render(CAMERAS[7], torch.ones(3))
    return CAMERAS[7].unproject(output.depth)[SIZE // 2, SIZE // 2]


def spotted(output: RenderOutput, camera: Camera, place: torch.Tensor) -> torch.Tensor:
    """What a photograph of the object with a soft spot on its surface shows (H, W, 3)."""
    away = (camera.unproject(output.depth) - place).norm(dim=-1)
    share = torch.exp(-((away / 0.3) ** 2)) * (output.alpha > 0.5)
    return torch.lerp(output.rgb, SPOT.expand_as(output.rgb), share[..., None])


@pytest.fixture(scope="module")
def nearby(scene, place) -> NearbyViews:
    photographs = [spotted(scene.render(CAMERAS[i], torch.ones(3)), CAMERAS[i], place) for i in range(len(CAMERAS))]
    views = NearbyViews(3)
    views.store_residuals(
        scene, torch.stack(photographs).permute(0, 3, 1, 2).clamp(0, 1), CAMERAS, keep_photographs=True
    )
    return views


def test_renderings_get_what_photographs_show_and_nothing_where_it_is_hidden(scene, place, nearby):
    sides = {True: 0, False: 0}
    for index in range(len(QUERIES)):
        output = scene.render(QUERIES[index], torch.ones(3))
        truth = spotted(output, QUERIES[index], place)
        found = CorrectedScene(scene, nearby).render(QUERIES[index], torch.ones(3)).rgb
        before, after = (torch.linalg.norm(image - truth) for image in (output.rgb, found))
        if before > 3:
            assert after < 0.4 * before, (index, before, after)
        elif before < 0.1:
            assert after < 0.2
        sides[bool(before > 3)] += 1
    assert min(sides.values()) > 1


def test_several_cameras_are_corrected_one_by_one(scene, nearby):
    shown = CorrectedScene(scene, nearby)
    together = shown.render(QUERIES, torch.ones(3))
    torch.testing.assert_close(together.rgb[2], shown.render(QUERIES[2], torch.ones(3)).rgb)
    assert torch.equal(shown.center, scene.center)
    assert shown.extent == scene.extent


def test_a_photograph_does_not_correct_its_own_rendering(scene, place):
    output = scene.render(CAMERAS[7], torch.ones(3))
    alone = NearbyViews(3)
    alone.store_residuals(scene, spotted(output, CAMERAS[7], place).permute(2, 0, 1)[None], CAMERAS[7:8])
    assert torch.equal(alone.correct_rendering(output, CAMERAS[7]).rgb, output.rgb)
    neighbor = CAMERAS[int((CAMERAS.center @ CAMERAS.center[7]).topk(2).indices[1])]
    beside = scene.render(neighbor)
    assert not torch.equal(alone.correct_rendering(beside, neighbor).rgb, beside.rgb)


def test_what_no_photograph_shows_is_doubted(scene, place, nearby):
    output = scene.render(QUERIES[4], torch.ones(3))
    truth = spotted(output, QUERIES[4], place)
    shown = output.alpha > 0.9
    row, column = shown.nonzero().float().mean(0).round().long().tolist()
    floater = (slice(row - 3, row + 4), slice(column - 3, column + 4))
    depth, rgb = output.depth.clone(), truth.clone()
    depth[floater], rgb[floater] = 0.6 * output.depth[row, column], torch.tensor([0.0, 1.0, 1.0])
    before = nearby.support_residual(replace(output, rgb=truth), QUERIES[4])
    after = nearby.support_residual(replace(output, rgb=rgb, depth=depth), QUERIES[4])
    assert before[shown].median() < 0.02
    assert (before[output.alpha < 0.5] == 0).all()
    assert after[floater].min() > 0.2
    elsewhere = torch.ones_like(shown)
    elsewhere[floater] = False
    assert torch.equal(after[elsewhere], before[elsewhere])


def test_doubt_is_the_difference_from_the_photograph_that_is_nearest_in_color(scene, nearby):
    camera = QUERIES[4]
    output = scene.render(camera, torch.ones(3))
    found = nearby.support_residual(output, camera)
    inside = (output.alpha > 0.5).nonzero()
    away = [index for index, _ in nearby._nearest(camera)]
    for row, column in inside[:: len(inside) // 9].tolist():
        point, color = camera.unproject(output.depth)[row, column], output.rgb[row, column]
        least = 1.0
        for index in away:
            view = Camera(nearby.camera_to_world[index], nearby.intrinsics[index], *nearby.depths.shape[:0:-1])
            x, y = (view.project(point[None])[0][0] - 0.5).tolist()
            left, top = math.floor(x), math.floor(y)
            seen = torch.zeros(3)
            for dx, dy in itertools.product((0, 1), (0, 1)):
                weight = (1 - abs(x - left - dx)) * (1 - abs(y - top - dy))
                seen += weight * nearby.photographs[index][:, top + dy, left + dx] / 255
            least = min(least, float((seen - color).abs().max()))
        assert float(found[row, column]) == pytest.approx(least, abs=1e-4)


def test_nothing_is_doubted_where_there_is_nothing_to_ask(scene, place):
    alone = NearbyViews(3)
    output = scene.render(CAMERAS[7], torch.ones(3))
    photograph = spotted(output, CAMERAS[7], place).permute(2, 0, 1)[None]
    alone.store_residuals(scene, photograph, CAMERAS[7:8], keep_photographs=True)
    assert not alone.support_residual(output, CAMERAS[7]).any()
    without = NearbyViews(3)
    without.store_residuals(scene, torch.zeros(len(CAMERAS), 3, SIZE, SIZE), CAMERAS)
    assert not len(without.photographs)
    assert not without.support_residual(output, CAMERAS[7]).any()


def test_only_the_object_is_kept_and_a_checkpoint_keeps_it(scene, nearby):
    assert nearby.depths.shape[-1] < SIZE
    fresh = NearbyViews(3)
    fresh.load_state_dict(nearby.state_dict())
    output = scene.render(QUERIES[1], torch.ones(3))
    assert torch.equal(
        fresh.correct_rendering(output, QUERIES[1]).rgb, nearby.correct_rendering(output, QUERIES[1]).rgb
    )
    with pytest.raises(ValueError, match="nearby_views: 0"):
        fresh.load_state_dict({})
    with pytest.raises(ValueError, match="count=0"):
        NearbyViews(0)
