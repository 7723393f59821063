# SPDX-License-Identifier: Apache-2.0
"""Gaussians sorted by their contribution, and scenes of the first Gaussians."""

import pytest
import torch

from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.render import make_rasterizer
from anomalib_pose.render.contributions import gaussian_contributions
from anomalib_pose.scene import GaussianScene, VoxelScene, reduced_scene, sort_by_contribution
from sample_scenes import make_scene, make_toy, with_reflectance

VIEWS = Camera.from_fov(view_sphere(12, 3.0, 1.2, -1.2), 0.7, 60, 48)


def with_core(outer: GaussianScene, count: int = 300) -> GaussianScene:
    """Put transparent Gaussians in the middle of an object, first in order."""
    generator = torch.Generator().manual_seed(1)
    core = {name: tensor[:count].clone() for name, tensor in outer.raw.items()}
    core["means"] = 0.05 * torch.randn(count, 3, generator=generator)
    core["logit_opacities"] = torch.full((count,), -6.0)
    scene = GaussianScene(outer.sh_degree, "cpu")
    scene.set_raw({name: torch.cat([core[name], tensor]) for name, tensor in outer.raw.items()})
    return scene


def contributions_of(scene: GaussianScene) -> torch.Tensor:
    rasterizer = make_rasterizer("cpu")
    return torch.stack(
        [gaussian_contributions(scene.activated(), rasterizer, VIEWS[index]) for index in range(12)]
    ).sum(0)


@pytest.mark.parametrize("reflects", [False, True])
def test_invisible_gaussians_move_to_the_end_and_images_stay(reflects):
    scene = with_core(with_reflectance(make_toy()) if reflects else make_toy())
    before = scene.render(VIEWS, torch.ones(3)).rgb
    contributions, means = contributions_of(scene), scene.means.clone()
    sort_by_contribution(scene, VIEWS)
    torch.testing.assert_close(scene.render(VIEWS, torch.ones(3)).rgb, before, atol=1e-5, rtol=0)
    assert contributions[:300].max() == 0 < contributions[300:].median()
    assert set(map(tuple, scene.means[-300:].tolist())) == set(map(tuple, means[:300].tolist()))
    ordered = contributions_of(scene)
    assert (ordered[:-1] >= ordered[1:] - 1e-4).all()
    small, large = scene.counts.tolist()
    assert small < large <= 1500
    for count, omitted in ((small, 0.07), (large, 0.015)):
        tails = (float(ordered[first:].sum() / ordered.sum()) for first in (count, count - 1))
        assert next(tails) <= omitted < next(tails)


def test_reduced_scenes_render_nearly_the_same_images():
    scene = with_core(make_toy())
    sort_by_contribution(scene, VIEWS)
    small, large = reduced_scene(scene, small=True), reduced_scene(scene, small=False)
    assert (len(small), len(large)) == tuple(scene.counts.tolist())
    assert torch.equal(large.means, scene.means[: len(large)])
    expected = scene.render(VIEWS, torch.ones(3)).rgb
    reduced_images = [reduced.render(VIEWS, torch.ones(3)).rgb for reduced in (large, small)]
    errors = [float((images - expected).square().mean().sqrt()) for images in reduced_images]
    assert errors[0] < 0.01 < errors[1] < 0.1


def test_without_counts_the_whole_scene_is_rendered():
    scene = make_scene()
    assert reduced_scene(scene, small=True) is scene
    sort_by_contribution(scene, VIEWS)
    assert reduced_scene(scene, small=True) is not scene
    scene.set_raw(scene.raw)
    assert reduced_scene(scene, small=False) is scene
    empty = GaussianScene(0, "cpu")
    sort_by_contribution(empty, VIEWS)
    assert reduced_scene(empty, small=True) is empty
    other = VoxelScene()
    sort_by_contribution(other, VIEWS)
    assert reduced_scene(other, small=True) is other


def test_counts_are_saved_and_older_checkpoints_load_without_them():
    scene, other = make_scene(), make_scene(seed=1)
    sort_by_contribution(scene, VIEWS)
    state = scene.state_dict()
    other.load_state_dict(state)
    assert torch.equal(other.counts, scene.counts)
    assert torch.equal(reduced_scene(other, small=True).means, reduced_scene(scene, small=True).means)
    del state["counts"]
    other.load_state_dict(state)
    assert reduced_scene(other, small=True) is other
