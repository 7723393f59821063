# SPDX-License-Identifier: Apache-2.0
"""Training changes the prompts and nothing else."""

import pytest
import torch

from anomalib_pose.data import CloudBatch
from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.scorer import ClipScorer
from anomalib_pose.models.point_ad.training import FeatureCache, cloud_targets, prompt_loss, prompt_optimizer
from anomalib_pose.render.back_projection import fill_visibility

SIZE = 16


def batch() -> CloudBatch:
    """Create two objects; the second has a bright spot in every view and at the points visible there."""
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


def test_targets_hold_the_batch_with_filled_visibility():
    clouds = batch()
    targets = cloud_targets(clouds)
    assert torch.equal(targets.labels, clouds.gt_label)
    assert torch.equal(targets.view_masks, clouds.view_masks)
    assert torch.equal(targets.points, clouds.gt_mask.flatten(1))
    assert torch.equal(targets.valid, clouds.valid.flatten(1))
    assert torch.equal(targets.pixels, clouds.pixels)
    for number in range(2):
        assert torch.equal(targets.visible[number], fill_visibility(clouds.visible[number], targets.valid[number]))
    assert torch.equal(targets.visible.any(1), targets.valid)
    clouds.pixels = clouds.view_masks = None
    with pytest.raises(ValueError, match="this batch has no view_masks, pixels"):
        cloud_targets(clouds)


def test_prompts_learn_defects(small):
    prompts = PromptLearner(small.text, deep_sets=3)
    scorer, clouds = ClipScorer(small.vision), batch()
    features, targets = FeatureCache(scorer).of(["a", "b"], clouds.views), cloud_targets(clouds)
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


def test_equal_seeds_learn_equal_prompts(small):
    clouds = batch()
    features, targets = FeatureCache(ClipScorer(small.vision)).of(["a", "b"], clouds.views), cloud_targets(clouds)
    learned = []
    for _ in range(2):
        prompts = PromptLearner(small.text, deep_sets=1, seed=7)
        optimizer = prompt_optimizer(prompts)
        for _ in range(2):
            optimizer.zero_grad()
            prompt_loss(small.text, prompts, features, targets, paper=True).total.backward()
            optimizer.step()
        learned.append(prompts.deep.detach().clone())
    assert torch.equal(*learned)
