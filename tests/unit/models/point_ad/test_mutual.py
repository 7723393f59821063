# SPDX-License-Identifier: Apache-2.0
"""Mutual scoring compares the right views, on artificial features."""

import pytest
import torch
from torch import nn

from anomalib_pose.compare.mutual import mutual_maps
from anomalib_pose.data import CloudBatch
from anomalib_pose.models.point_ad.cloud_grid import pixels_with_points
from anomalib_pose.models.point_ad.mutual import MutualScorer, MutualSettings

VIEWS, SIZE, CLOUDS = 3, 8, 5
CPU = torch.device("cpu")
PLAIN = MutualSettings(foreground_only=False, centered=False)


class Features(nn.Module):
    """Two layers: the image at half and at a quarter of its size."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [nn.functional.avg_pool2d(images, size) for size in (2, 4)]


def batches(clouds=CLOUDS, photographs=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    views = torch.rand(clouds, VIEWS, 3, SIZE, SIZE, generator=g)
    images = torch.rand(clouds, 3, SIZE, SIZE, generator=g)
    visible = torch.rand(clouds, VIEWS, SIZE * SIZE, generator=g) > 0.7
    pixels = torch.randint(0, SIZE, (clouds, VIEWS, SIZE * SIZE, 2), generator=g, dtype=torch.int16)
    valid = torch.rand(clouds, SIZE, SIZE, generator=g) > 0.4
    with_rgb = torch.tensor(photographs or [True] * clouds)
    return [
        CloudBatch(
            image=images[part],
            image_path=[f"{index}.png" for index in range(clouds)][part],
            views=views[part],
            pixels=pixels[part],
            visible=visible[part],
            valid=valid[part],
            has_rgb=with_rgb[part],
        )
        for part in (slice(0, 2), slice(2, None))
    ]


def layers_of(images):
    return [layer.half() for layer in Features()(images)]


def collected(settings, clouds):
    scorer = MutualScorer(Features(), settings)
    scorer.collect(clouds, CPU, progress=False)
    return [scores for batch in clouds for scores in scorer.score_images(batch)]


def test_each_view_is_compared_with_the_same_view_of_other_clouds():
    clouds = batches()
    scored = collected(PLAIN, clouds)
    views, images = (torch.cat([getattr(batch, name) for batch in clouds]) for name in ("views", "image"))
    for view in range(VIEWS):
        expected = mutual_maps(layers_of(views[:, view]))
        for cloud in range(CLOUDS):
            torch.testing.assert_close(scored[cloud].view_maps[view], expected[cloud])
            torch.testing.assert_close(scored[cloud].view_scores[view], expected[cloud].max())
    photographs = mutual_maps(layers_of(images))
    for cloud in range(CLOUDS):
        torch.testing.assert_close(scored[cloud].photograph_map, photographs[cloud])
        torch.testing.assert_close(scored[cloud].photograph_score, photographs[cloud].max())


def test_photographs_are_compared_with_photographs():
    clouds = batches(photographs=[True, False, True, True, False])
    scored = collected(PLAIN, clouds)
    images = torch.cat([batch.image for batch in clouds])
    photographs = mutual_maps(layers_of(images[[0, 2, 3]]))
    for row, cloud in enumerate((0, 2, 3)):
        torch.testing.assert_close(scored[cloud].photograph_map, photographs[row])
    assert scored[1].photograph_map is None
    assert scored[4].photograph_score is None
    without = MutualSettings(foreground_only=False, fuse_rgb=False)
    for settings, data in ((without, batches()), (PLAIN, batches(photographs=[True] + [False] * 4))):
        assert all(scores.photograph_map is None for scores in collected(settings, data))


def test_the_foreground_consists_of_pixels_with_points():
    clouds = batches()
    scored = collected(MutualSettings(centered=False), clouds)
    views = torch.cat([batch.views for batch in clouds])
    occupied = torch.zeros(CLOUDS, SIZE, SIZE, dtype=torch.bool)
    pixels, visible = (torch.cat([getattr(batch, name) for batch in clouds])[:, 1] for name in ("pixels", "visible"))
    for cloud in range(CLOUDS):
        for (row, column), is_visible in zip(pixels[cloud].tolist(), visible[cloud].tolist(), strict=True):
            occupied[cloud, row, column] |= is_visible
    expected = mutual_maps(layers_of(views[:, 1]), occupied)
    torch.testing.assert_close(torch.stack([scores.view_maps[1] for scores in scored]), expected)
    assert torch.equal(pixels_with_points(pixels, visible, SIZE), occupied)
    images, valid = (torch.cat([getattr(batch, name) for batch in clouds]) for name in ("image", "valid"))
    photographs = mutual_maps(layers_of(images), valid)
    torch.testing.assert_close(torch.stack([scores.photograph_map for scores in scored]), photographs)


def test_centering_subtracts_the_median_of_a_view():
    clouds = batches()
    plain = collected(MutualSettings(centered=False), clouds)
    centered = collected(MutualSettings(), clouds)
    for before, after in zip(plain, centered, strict=True):
        for before_map, after_map in zip(
            [*before.view_maps, before.photograph_map], [*after.view_maps, after.photograph_map], strict=True
        ):
            positive = before_map[before_map > 0]
            torch.testing.assert_close(after_map, (before_map - positive.median()).clamp_min(0))
        torch.testing.assert_close(after.view_scores, after.view_maps.amax((1, 2)))
        torch.testing.assert_close(after.photograph_score, after.photograph_map.max())


def test_categories_are_not_compared_with_each_other():
    both = [*batches(), *batches(seed=7)]
    for number, batch in enumerate(both):
        batch.category = [f"category {number // 2}"] * len(batch.image)
        batch.image_path = [f"{number // 2}/{path}" for path in batch.image_path]
    # in any order
    scored = collected(PLAIN, [both[0], both[2], both[1], both[3]])
    alone = [*collected(PLAIN, batches()), *collected(PLAIN, batches(seed=7))]
    for index, position in enumerate((0, 1, 5, 6, 2, 3, 4, 7, 8, 9)):
        assert torch.equal(scored[index].view_maps, alone[position].view_maps)
        assert torch.equal(scored[index].photograph_map, alone[position].photograph_map)
    both[3].category = ["category 0", "category 0", "single"]
    with pytest.raises(ValueError, match=r"two or more, got 1 of 'single'"):
        collected(PLAIN, [both[0], both[3]])


def test_the_same_set_is_scored_once():
    clouds, content = batches(), ["the set"]
    scorer = MutualScorer(Features(), PLAIN)
    scorer.collect(clouds, CPU, content=content, progress=False)
    first = scorer.score_images(clouds[0])[0].view_maps
    scorer.collect(None, CPU, content=["the set"], progress=False)
    assert torch.equal(scorer.score_images(clouds[0])[0].view_maps, first)
    others = batches(seed=1)
    scorer.collect(others, CPU, content=["another"], progress=False)
    assert not torch.equal(scorer.score_images(others[0])[0].view_maps, first)


def test_sets_that_cannot_be_compared_are_refused(caplog):
    scorer = MutualScorer(Features(), PLAIN)
    clouds = batches()
    with pytest.raises(ValueError, match="needs two or more, got 0"):
        scorer.collect([], CPU, progress=False)
    with pytest.raises(ValueError, match="has 2 views, but earlier clouds have 3"):
        clouds[1].views = clouds[1].views[:, :2]
        scorer.collect(clouds, CPU, progress=False)
    with pytest.raises(ValueError, match="but this batch has none"):
        scorer.collect([CloudBatch(image=torch.rand(1, 3, 8, 8))], CPU, progress=False)
    with pytest.raises(ValueError, match=r"not 0\.png"):
        scorer.score_images(batches()[0])
    scorer.collect(batches(), CPU, progress=False)
    assert "transductive: they depend on all 5 clouds" in caplog.text
