# SPDX-License-Identifier: Apache-2.0
"""Correction by nearby views: a spot that exists only in the photographs appears in renderings from other poses."""

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
def spot_center(scene) -> torch.Tensor:
    output = scene.render(CAMERAS[7], torch.ones(3))
    return CAMERAS[7].unproject(output.depth)[SIZE // 2, SIZE // 2]


def paint_spot(output: RenderOutput, camera: Camera, spot_center: torch.Tensor) -> torch.Tensor:
    """Paint a soft spot on the rendered surface and return the image (H, W, 3)."""
    distance = (camera.unproject(output.depth) - spot_center).norm(dim=-1)
    weight = torch.exp(-((distance / 0.3) ** 2)) * (output.alpha > 0.5)
    return torch.lerp(output.rgb, SPOT.expand_as(output.rgb), weight[..., None])


@pytest.fixture(scope="module")
def nearby(scene, spot_center) -> NearbyViews:
    outputs = [scene.render(CAMERAS[index], torch.ones(3)) for index in range(len(CAMERAS))]
    images = [paint_spot(output, CAMERAS[index], spot_center) for index, output in enumerate(outputs)]
    photographs = torch.stack(images).permute(0, 3, 1, 2).clamp(0, 1)
    views = NearbyViews(3)
    views.store_residuals(scene, photographs, CAMERAS, keep_photographs=True)
    return views


def test_renderings_are_corrected_where_the_spot_is_visible_and_nowhere_else(scene, spot_center, nearby):
    sides = {True: 0, False: 0}
    for index in range(len(QUERIES)):
        output = scene.render(QUERIES[index], torch.ones(3))
        truth = paint_spot(output, QUERIES[index], spot_center)
        corrected = CorrectedScene(scene, nearby).render(QUERIES[index], torch.ones(3)).rgb
        before, after = (torch.linalg.norm(image - truth) for image in (output.rgb, corrected))
        if before > 3:
            assert after < 0.4 * before, (index, before, after)
        elif before < 0.1:
            assert after < 0.2
        sides[bool(before > 3)] += 1
    assert min(sides.values()) > 1


def test_a_batch_of_renderings_equals_single_corrections(scene, nearby):
    corrected_scene = CorrectedScene(scene, nearby)
    batch = corrected_scene.render(QUERIES, torch.ones(3))
    torch.testing.assert_close(batch.rgb[2], corrected_scene.render(QUERIES[2], torch.ones(3)).rgb)
    assert torch.equal(corrected_scene.center, scene.center)
    assert corrected_scene.extent == scene.extent


def test_a_photograph_does_not_correct_its_own_rendering(scene, spot_center):
    output = scene.render(CAMERAS[7], torch.ones(3))
    single_view = NearbyViews(3)
    single_view.store_residuals(scene, paint_spot(output, CAMERAS[7], spot_center).permute(2, 0, 1)[None], CAMERAS[7:8])
    assert torch.equal(single_view.correct_rendering(output, CAMERAS[7]).rgb, output.rgb)
    neighbor = CAMERAS[int((CAMERAS.center @ CAMERAS.center[7]).topk(2).indices[1])]
    neighbor_output = scene.render(neighbor)
    corrected = single_view.correct_rendering(neighbor_output, neighbor)
    assert not torch.equal(corrected.rgb, neighbor_output.rgb)


def test_a_floater_has_a_large_support_residual(scene, spot_center, nearby):
    output = scene.render(QUERIES[4], torch.ones(3))
    truth = paint_spot(output, QUERIES[4], spot_center)
    opaque = output.alpha > 0.9
    row, column = opaque.nonzero().float().mean(0).round().long().tolist()
    floater = (slice(row - 3, row + 4), slice(column - 3, column + 4))
    depth, rgb = output.depth.clone(), truth.clone()
    depth[floater], rgb[floater] = 0.6 * output.depth[row, column], torch.tensor([0.0, 1.0, 1.0])
    before = nearby.support_residual(replace(output, rgb=truth), QUERIES[4])
    after = nearby.support_residual(replace(output, rgb=rgb, depth=depth), QUERIES[4])
    assert before[opaque].median() < 0.02
    assert (before[output.alpha < 0.5] == 0).all()
    assert after[floater].min() > 0.2
    elsewhere = torch.ones_like(opaque)
    elsewhere[floater] = False
    assert torch.equal(after[elsewhere], before[elsewhere])


def test_the_support_residual_is_the_difference_from_the_view_nearest_in_color(scene, nearby):
    camera = QUERIES[4]
    output = scene.render(camera, torch.ones(3))
    residual = nearby.support_residual(output, camera)
    inside = (output.alpha > 0.5).nonzero()
    nearest = [index for index, _ in nearby._nearest(camera)]
    for row, column in inside[:: len(inside) // 9].tolist():
        point, color = camera.unproject(output.depth)[row, column], output.rgb[row, column]
        least = 1.0
        for index in nearest:
            view = Camera(nearby.camera_to_world[index], nearby.intrinsics[index], *nearby.depths.shape[:0:-1])
            x, y = (view.project(point[None])[0][0] - 0.5).tolist()
            left, top = math.floor(x), math.floor(y)
            view_color = torch.zeros(3)
            for dx, dy in itertools.product((0, 1), (0, 1)):
                weight = (1 - abs(x - left - dx)) * (1 - abs(y - top - dy))
                view_color += weight * nearby.photographs[index][:, top + dy, left + dx] / 255
            least = min(least, float((view_color - color).abs().max()))
        assert float(residual[row, column]) == pytest.approx(least, abs=1e-4)


def test_the_support_residual_is_zero_without_other_views_or_photographs(scene, spot_center):
    single_view = NearbyViews(3)
    output = scene.render(CAMERAS[7], torch.ones(3))
    photograph = paint_spot(output, CAMERAS[7], spot_center).permute(2, 0, 1)[None]
    single_view.store_residuals(scene, photograph, CAMERAS[7:8], keep_photographs=True)
    assert not single_view.support_residual(output, CAMERAS[7]).any()
    without_photographs = NearbyViews(3)
    without_photographs.store_residuals(scene, torch.zeros(len(CAMERAS), 3, SIZE, SIZE), CAMERAS)
    assert not len(without_photographs.photographs)
    assert not without_photographs.support_residual(output, CAMERAS[7]).any()


def test_views_are_cropped_to_the_object_and_reload_from_a_checkpoint(scene, nearby):
    assert nearby.depths.shape[-1] < SIZE
    reloaded = NearbyViews(3)
    reloaded.load_state_dict(nearby.state_dict())
    output = scene.render(QUERIES[1], torch.ones(3))
    assert torch.equal(
        reloaded.correct_rendering(output, QUERIES[1]).rgb, nearby.correct_rendering(output, QUERIES[1]).rgb
    )
    with pytest.raises(ValueError, match="nearby_views: 0"):
        reloaded.load_state_dict({})
    with pytest.raises(ValueError, match="count=0"):
        NearbyViews(0)
