# SPDX-License-Identifier: Apache-2.0
"""Each stage of the network agrees with stored outputs of the published one, within the stored tolerances."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from anomalib_pose.models.point_ad.losses import CloudTargets, both_dice, dice, focal
from anomalib_pose.models.point_ad.scorer import ClipFeatures, ClipScorer, abnormal_probability
from anomalib_pose.models.point_ad.text import direction, end_positions
from anomalib_pose.models.point_ad.training import prompt_loss
from anomalib_pose.render.back_projection import back_project

FEATURES, PROBABILITIES, LOSSES = 2e-5, 1e-5, 1e-5


def images(pixels: np.ndarray) -> torch.Tensor:
    """Convert uint8 images (b, h, w, 3) to RGB (b, 3, h, w) in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def close(actual: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=tolerance)


@pytest.fixture
def scorer(golden_clip) -> ClipScorer:
    return ClipScorer(golden_clip.vision, vv_blocks=2)


@pytest.fixture
def golden_direction(golden) -> torch.Tensor:
    return torch.from_numpy(golden("text")["direction"])


def test_both_paths_of_the_image_tower_agree(golden, golden_clip):
    arrays, vision = golden("visual"), golden_clip.vision
    preprocessed = vision.preprocess(images(arrays["images"]))
    close(preprocessed[0], arrays["images_normalised_0"], 1e-6)
    with torch.no_grad():
        paths = list(vision.paths(preprocessed[:2], 2))
        for number, (first, second) in enumerate(paths[:2], start=1):
            close(first, arrays[f"block{number}"], FEATURES)
            assert second is first
        for number, (first, second) in enumerate(paths[2:], start=3):
            close(first, arrays[f"block{number}_original"], FEATURES)
            close(second, arrays[f"block{number}_vv"], FEATURES)
        for number, (_, second) in enumerate(paths, start=1):
            close(vision.project(second), arrays[f"patch_{number}"][:2], FEATURES)


def test_features_agree(golden, golden_clip):
    arrays, vision = golden("visual"), golden_clip.vision
    with torch.no_grad():
        cls, patches = vision(vision.preprocess(images(arrays["images"])), 2)
    close(cls, arrays["cls"], FEATURES)
    close(cls, arrays["plain_cls"], FEATURES)
    close(patches, arrays["patch_4"][:, 1:], FEATURES)


def test_prompts_agree(golden, golden_clip, golden_prompts):
    arrays, text = golden("text"), golden_clip.text
    assert np.array_equal(golden_prompts.ids, arrays["token_ids"][:, :17])
    assert np.array_equal(end_positions(golden_prompts.ids), arrays["end_positions"])
    tokens = golden_prompts.tokens(text)
    close(tokens, arrays["prompt_embeddings"], 0)
    deep = golden_prompts.deep.half().float()
    for number, state in enumerate(text.states(tokens, deep), start=1):
        close(state, arrays[f"block{number}"], FEATURES)
    close(text(tokens, end_positions(golden_prompts.ids), deep), arrays["text_raw"], FEATURES)
    close(golden_prompts(text), arrays["text"], FEATURES)
    close(direction(golden_prompts(text)), arrays["direction"], 1e-4)
    golden_prompts.paper = False
    close(golden_prompts(text), arrays["text_NOHALF"], FEATURES)
    assert np.abs(arrays["text_NOHALF"] - arrays["text"]).max() > FEATURES


def test_maps_agree(golden, scorer, golden_direction):
    arrays = golden("maps")
    features = scorer.features(images(golden("visual")["images"]))
    scores, maps = abnormal_probability(features, golden_direction)
    close(scores, arrays["view_prob"][:, 1], PROBABILITIES)
    close((features.cls @ golden_direction), arrays["view_logits"][:, 1] - arrays["view_logits"][:, 0], 1e-4)
    close(maps.flatten(1), arrays["patch_prob"][:, 1:, 1], PROBABILITIES)
    larger = functional.interpolate(maps[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    close(larger, arrays["similarity_map"][..., 1], PROBABILITIES)
    close(1 - larger, arrays["similarity_map"][..., 0], PROBABILITIES)


def targets(arrays) -> CloudTargets:
    cor = torch.from_numpy(arrays["cor"])
    valid = torch.from_numpy(arrays["valid"])
    return CloudTargets(
        labels=torch.from_numpy(arrays["labels"]),
        view_masks=torch.from_numpy(arrays["render_masks"]).bool(),
        points=torch.from_numpy(arrays["gt_points"]).flatten(1).bool(),
        valid=valid,
        pixels=cor[..., [1, 0]],
        visible=(cor[..., 2] > 0) & valid[:, None],
    )


def test_the_parts_of_the_loss_agree(golden):
    arrays = golden("losses")
    maps = torch.from_numpy(golden("maps")["similarity_map"])[..., 1].flatten(1)
    truth = targets(arrays)
    masks = truth.view_masks.flatten(0, 1).flatten(1).float()
    close(focal(maps, masks), arrays["part_2d_focal"], LOSSES)
    close(dice(maps, masks), arrays["part_2d_dice_abnormal"], LOSSES)
    close(dice(1 - maps, 1 - masks), arrays["part_2d_dice_normal"], LOSSES)
    close(both_dice(maps, masks), arrays["part_2d_dice_abnormal"] + arrays["part_2d_dice_normal"], LOSSES)


@pytest.mark.parametrize("paper", [True, False], ids=["published", "corrected"])
def test_losses_and_gradients_agree(golden, golden_clip, golden_prompts, scorer, paper):
    arrays = golden("losses")
    suffix = "" if paper else "_CORRECTED"
    truth = targets(arrays)
    features = scorer.features(images(arrays["images"]))
    features = ClipFeatures(features.cls.view(2, 3, -1), features.patches.view(2, 3, 64, -1))

    loss = prompt_loss(golden_clip.text, golden_prompts, features, truth, paper=paper)
    close(loss.views_local, arrays["loss_2d_local"], LOSSES)
    close(loss.views_global, arrays["loss_2d_global"], LOSSES)
    close(loss.points_local, arrays[f"loss_3d_local{suffix}"], LOSSES)
    close(loss.points_global, arrays[f"loss_3d_global{suffix}"], LOSSES)
    close(loss.total, arrays[f"loss_total{suffix}"], 2 * LOSSES)

    # the gradients of the corrected form are those without rounding
    golden_prompts.paper = paper
    prompt_loss(golden_clip.text, golden_prompts, features, truth, paper=paper).total.backward()
    close(golden_prompts.normal.grad, arrays[f"grad_ctx_pos{suffix}"], 2e-5)
    close(golden_prompts.abnormal.grad, arrays[f"grad_ctx_neg{suffix}"], 2e-5)
    close(golden_prompts.deep.grad, arrays[f"grad_deep_tokens{suffix}"], 5e-4 if paper else 2e-5)
    assert all(value.grad is None and not value.requires_grad for value in golden_clip.parameters())


def test_scores_of_points_and_objects_agree(golden, scorer, golden_direction):
    losses, arrays = golden("losses"), golden("score")
    truth = targets(losses)
    photographs = scorer.features(images(arrays["rgb_images"]))
    for number, views in enumerate(images(losses["images"]).unflatten(0, (2, 3))):
        photograph = ClipFeatures(photographs.cls[number], photographs.patches[number])
        scores = scorer.score(scorer.features(views), photograph, golden_direction)
        close(scores.view_scores.mean(), arrays["mean_view_prob"][number], LOSSES)
        maps = functional.interpolate(scores.view_maps[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
        points = back_project(maps, truth.pixels[number], truth.visible[number])
        close(points.view(64, 64), arrays["point_map_unsmoothed"][number], PROBABILITIES)
        close(points.view(64, 64), losses["point_prob"][number, ..., 1], PROBABILITIES)
        # the reference's score of the photograph is the maximum of its smoothed map and the score as a whole
        close(scores.photograph_score + arrays["rgb_map"][number].max(), arrays["rgb_score"][number], LOSSES)
