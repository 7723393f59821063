# SPDX-License-Identifier: Apache-2.0
"""Both paths of the image tower, features, and scores agree with their definitions."""

import pytest
import torch
from torch import nn

from anomalib_pose.models.point_ad.scorer import ClipFeatures, ClipScorer
from anomalib_pose.models.point_ad.text import direction, ensemble_features
from anomalib_pose.models.point_ad.training import FeatureCache


def value_to_value_attention(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Compute proj(softmax(v v^T / sqrt(width)) v) head by head and token by token."""
    width, heads = x.shape[-1], block.attn.num_heads
    head_width = width // heads
    weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
    values = block.ln_1(x) @ weight.T + bias
    out = torch.zeros_like(x)
    for image in range(len(x)):
        for head in range(heads):
            v = values[image, :, head * head_width : (head + 1) * head_width]
            for token in range(len(v)):
                weights = torch.softmax(torch.stack([v[token] @ other for other in v]) / head_width**0.5, 0)
                out[image, token, head * head_width : (head + 1) * head_width] = sum(
                    weight * value for weight, value in zip(weights, v, strict=True)
                )
    return out @ block.attn.out_proj.weight.T + block.attn.out_proj.bias


@pytest.mark.parametrize("vv_blocks", [1, 3])
def test_the_second_path_agrees_with_its_definition(small, vv_blocks):
    vision = small.vision
    preprocessed = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        paths = list(vision.paths(preprocessed, vv_blocks))
        inputs = [paths[number][0] for number in range(3)]  # of blocks 2, 3 and 4
        expected = paths[3 - vv_blocks][0]
        for block, x in list(zip(vision.blocks[1:], inputs, strict=True))[-vv_blocks:]:
            expected = expected + value_to_value_attention(block, x)
        _, patches = vision(preprocessed, vv_blocks)
    torch.testing.assert_close(paths[-1][1], expected, rtol=0, atol=1e-5)
    truth = vision.ln_post(expected[:, 1:]) @ vision.proj
    torch.testing.assert_close(patches, truth, rtol=0, atol=1e-5)
    assert (vision.project(paths[-1][0][:, 1:]) - patches).abs().max() > 0.01


def test_the_second_path_has_the_published_length(small):
    blocks = {24: 19, 12: 10, 32: 25, 4: 3, 1: 1}
    vision = small.vision
    own = vision.blocks
    try:
        for count, expected in blocks.items():
            vision.blocks = nn.ModuleList([own[0]] * count)
            assert vision.count_vv_blocks(None) == expected
    finally:
        vision.blocks = own
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=f"between 1 and 4, the blocks of this CLIP, got {wrong}"):
            ClipScorer(vision, wrong)


def test_images_of_another_size_are_resized(small):
    """Resized, a large image of smooth stripes equals the small image of the same stripes."""
    vision = small.vision
    large, exact = (
        (0.5 + 0.4 * torch.sin((torch.arange(size) + 0.5) / size * 20)).expand(1, 3, size, size) for size in (192, 64)
    )
    truth = vision.normalize(exact)
    assert torch.equal(vision.preprocess(exact), truth)
    assert (vision.preprocess(large) - truth)[..., 2:-2].abs().max() < 0.02
    # a pattern finer than the small image's pixels becomes gray: no aliasing
    fine = (torch.arange(192)[:, None] + torch.arange(192)).remainder(2).float().expand(1, 3, 192, 192)
    gray = vision.normalize(torch.full((1, 3, 64, 64), 0.5))
    assert (vision.preprocess(fine) - gray)[..., 2:-2, 2:-2].abs().max() < 0.2
    torch.testing.assert_close(truth[0, :, 0, 0], (exact[0, :, 0, 0] - vision.mean[:, 0, 0]) / vision.std[:, 0, 0])


def test_scores_are_the_softmax_over_both_texts(small):
    scorer = ClipScorer(small.vision)
    text = ensemble_features(small.text)
    g = torch.Generator().manual_seed(0)
    views, photograph = torch.rand(3, 3, 64, 64, generator=g), torch.rand(3, 64, 64, generator=g)
    image_scores = scorer(views, photograph, direction(text))
    features = scorer.features(torch.cat([views, photograph[None]]))
    scores = torch.softmax(features.cls @ text.T / 0.07, -1)[:, 1]
    maps = torch.softmax(features.patches @ text.T / 0.07, -1)[..., 1]
    torch.testing.assert_close(image_scores.view_scores, scores[:3])
    torch.testing.assert_close(image_scores.photograph_score, scores[3])
    torch.testing.assert_close(image_scores.view_maps[1, 2, 5], maps[1, 2 * 8 + 5])
    torch.testing.assert_close(image_scores.photograph_map.flatten(), maps[3])
    alone = scorer(views, None, direction(text))
    assert alone.photograph_map is None
    assert alone.photograph_score is None
    torch.testing.assert_close(alone.view_scores, image_scores.view_scores)


def test_cached_features_are_computed_once_and_score_alike(small, monkeypatch):
    scorer = ClipScorer(small.vision)
    d = direction(ensemble_features(small.text))
    views = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    calls = []
    features = scorer.features
    monkeypatch.setattr(scorer, "features", lambda images: calls.append(len(images)) or features(images))
    cache = FeatureCache(scorer)
    first = cache.of(["a", "b"], views)
    again = cache.of(["b", "a"], torch.full_like(views, torch.nan))
    assert calls == [3, 3]
    assert len(cache) == 2
    assert {part.dtype for part in first} == {torch.float16}
    assert torch.equal(first.patches[0], again.patches[1])
    assert torch.equal(first.cls[1], again.cls[0])
    for number in range(2):
        cached = scorer.score(ClipFeatures(first.cls[number], first.patches[number]), None, d)
        fresh = scorer(views[number], None, d)
        torch.testing.assert_close(cached.view_scores, fresh.view_scores, rtol=0, atol=1e-3)
        torch.testing.assert_close(cached.view_maps, fresh.view_maps, rtol=0, atol=1e-3)
