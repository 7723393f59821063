# SPDX-License-Identifier: Apache-2.0
"""Prompts learn from batches of clouds, and nothing else does."""

import pytest
import torch

from anomalib_pose.data import CloudBatch
from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.scorer import ClipScorer
from anomalib_pose.models.point_ad.training import FeatureCache, cloud_targets, prompt_loss, prompt_optimizer
from anomalib_pose.render.back_projection import fill_visibility

SIZE = 16


def batch() -> CloudBatch:
    """Two objects, of which one has a bright spot in every view and at the points that are seen there."""
    g = torch.Generator().manual_seed(0)
    views = 0.3 * torch.rand(2, 3, 3, 64, 64, generator=g)
    masks = torch.zeros(2, 3, 64, 64, dtype=torch.bool)
    masks[1, :, 16:40, 16:40] = True
    views = torch.where(masks[:, :, None], 1 - views, views)
    grid = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij"), -1).view(-1, 2)
    pixels = (grid * 4 + 2).expand(2, 3, -1, -1).to(torch.int16)
    return CloudBatch(
        image=views[:, 0, :, ::4, ::4],
        gt_label=torch.tensor([0, 1]),
        gt_mask=masks[:, 0, 2::4, 2::4],
        views=views,
        view_masks=masks,
        valid=torch.rand(2, SIZE, SIZE, generator=g) < 0.8,
        pixels=pixels,
        visible=torch.rand(2, 3, SIZE**2, generator=g) < 0.3,
    )


def test_targets_are_the_batch_with_borrowed_views():
    given = batch()
    found = cloud_targets(given)
    assert torch.equal(found.labels, given.gt_label)
    assert torch.equal(found.view_masks, given.view_masks)
    assert torch.equal(found.points, given.gt_mask.flatten(1))
    assert torch.equal(found.valid, given.valid.flatten(1))
    assert torch.equal(found.pixels, given.pixels)
    for number in range(2):
        assert torch.equal(found.visible[number], fill_visibility(given.visible[number], found.valid[number]))
    assert torch.equal(found.visible.any(1), found.valid)
    given.pixels = given.view_masks = None
    with pytest.raises(ValueError, match="this batch has no view_masks, pixels"):
        cloud_targets(given)


def test_prompts_learn_what_is_defective(small):
    prompts = PromptLearner(small.text, deep_sets=3)
    scorer, given = ClipScorer(small.vision), batch()
    features, targets = FeatureCache(scorer).of(["a", "b"], given.views), cloud_targets(given)
    frozen = {name: value.clone() for name, value in small.state_dict().items()}
    before = {name: value.detach().clone() for name, value in prompts.named_parameters()}
    optimizer = prompt_optimizer(prompts)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = prompt_loss(small.text, prompts, features, targets)
        loss.total.backward()
        optimizer.step()
        losses.append([term.item() for term in loss])
    assert all(last < 0.9 * first for first, last in zip(losses[0], losses[-1], strict=True)), (losses[0], losses[-1])
    assert all(not torch.equal(value, before[name]) for name, value in prompts.named_parameters())
    assert all(torch.equal(value, frozen[name]) for name, value in small.state_dict().items())


def test_the_same_seed_learns_the_same(small):
    given = batch()
    features, targets = FeatureCache(ClipScorer(small.vision)).of(["a", "b"], given.views), cloud_targets(given)
    found = []
    for _ in range(2):
        prompts = PromptLearner(small.text, deep_sets=1, seed=7)
        optimizer = prompt_optimizer(prompts)
        for _ in range(2):
            optimizer.zero_grad()
            prompt_loss(small.text, prompts, features, targets, paper=True).total.backward()
            optimizer.step()
        found.append(prompts.deep.detach().clone())
    assert torch.equal(*found)
