# SPDX-License-Identifier: Apache-2.0
"""Mutual scoring against loops over images and patches."""

import numpy as np
import pytest
import torch

from anomalib_pose.compare import mutual
from anomalib_pose.compare.mutual import above_median, mutual_maps, neighborhood_means, patch_scores, rescored


def patches(sizes, channels=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(size, channels, generator=g) for size in sizes]


def by_loop(images, share):
    """Score by the definition: one distance for each pair of patches."""
    scores = []
    for i, one in enumerate(images):
        of_image = []
        for p in one.double().numpy():
            nearest = []
            for j, other in enumerate(images):
                if j != i:
                    units = [q / np.linalg.norm(q) for q in other.double().numpy()]
                    nearest.append(min(np.linalg.norm(p / np.linalg.norm(p) - q) / 2 for q in units))
            nearest_count = max(1, round(share * len(nearest)))
            of_image.append(np.mean(sorted(nearest)[:nearest_count]))
        scores.append(of_image)
    return scores


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 1.0])
def test_patch_scores_equal_a_double_loop(share):
    images = patches([5, 9, 3, 8, 6])
    for result, expected in zip(patch_scores(images, share), by_loop(images, share), strict=True):
        # distances are kept in half precision
        np.testing.assert_allclose(result.numpy(), expected, atol=5e-4)


def test_scores_do_not_depend_on_the_chunk_size(monkeypatch):
    images = patches([11, 7, 10])
    whole = patch_scores(images)
    monkeypatch.setattr(mutual, "_ROWS", 4)
    for one, other in zip(whole, patch_scores(images), strict=True):
        torch.testing.assert_close(one, other)


def test_common_patches_score_zero_and_a_unique_patch_scores_most():
    """A patch in all images is normal, a patch in a single image is anomalous."""
    common = torch.eye(4)[:3]
    images = [common * (i + 1) for i in range(4)] + [torch.eye(4)]
    scores = patch_scores(images)
    assert all(float(score[:3].max()) < 1e-3 for score in scores)
    assert float(scores[-1][3]) == pytest.approx(np.sqrt(2) / 2, abs=1e-3)


def test_neighborhood_means_exclude_padding():
    features = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    for size in (1, 3, 5):
        result, reach = neighborhood_means(features, size), size // 2
        for row in range(5):
            for column in range(6):
                around = features[
                    ..., max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
                ]
                torch.testing.assert_close(result[..., row, column], around.mean((-2, -1)))


def test_maps_are_means_over_layers_and_sizes():
    g = torch.Generator().manual_seed(2)
    layers = [torch.randn(4, 5, 6, 6, generator=g), torch.randn(4, 8, 3, 3, generator=g)]
    expected = torch.zeros(4, 6, 6)
    steps = []
    for layer in layers:
        for size in (1, 3):
            means = neighborhood_means(layer, size)
            scores = by_loop([image.flatten(1).T for image in means], 0.5)
            maps = torch.tensor(np.array(scores)).reshape(4, 1, *layer.shape[-2:]).float()
            expected += torch.nn.functional.interpolate(maps, (6, 6), mode="bilinear")[:, 0] / 4
    result = mutual_maps(layers, neighborhoods=(1, 3), share=0.5, step=lambda: steps.append(1))
    torch.testing.assert_close(result, expected, atol=5e-4, rtol=0)
    assert len(steps) == 4
    halves = mutual_maps([layer.half() for layer in layers], neighborhoods=(1, 3), share=0.5)
    torch.testing.assert_close(halves, expected, atol=2e-3, rtol=0)


def test_background_is_neither_scored_nor_compared():
    g = torch.Generator().manual_seed(3)
    layer = torch.randn(3, 5, 4, 4, generator=g)
    foreground = torch.rand(3, 4, 4, generator=g) > 0.5
    foreground[2] = False
    result = mutual_maps([layer], foreground, neighborhoods=(1,))
    images = [image.permute(1, 2, 0)[here] for image, here in zip(layer[:2], foreground[:2], strict=True)]
    images.append(layer[2].flatten(1).T)
    expected = by_loop(images, 0.3)
    for index in (0, 1):
        np.testing.assert_allclose(result[index][foreground[index]], expected[index], atol=5e-4)
        assert not result[index][~foreground[index]].any()
    np.testing.assert_allclose(result[2].flatten(), expected[2], atol=5e-4)
    # a patch counts if one of its pixels does
    pixels = torch.zeros(3, 16, 16, dtype=torch.bool)
    pixels[:, ::4, ::4] = foreground
    torch.testing.assert_close(mutual_maps([layer], pixels, neighborhoods=(1,)), result)


def test_above_median_subtracts_the_median_of_scored_patches():
    maps = torch.tensor([[[0.0, 0.1, 0.3], [0.2, 0.9, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    expected = torch.tensor([[[0.0, 0.0, 0.1], [0.0, 0.7, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(above_median(maps), expected)


@pytest.mark.parametrize("windows", [(1,), (1, 2, 3), (4, 50)])
def test_rescoring_is_the_weighted_mean_of_the_most_similar(windows):
    g = torch.Generator().manual_seed(4)
    scores, descriptors = torch.rand(9, generator=g), torch.randn(9, 5, generator=g)
    result = rescored(scores, descriptors, windows)
    units = [d / np.linalg.norm(d) for d in descriptors.double().numpy()]
    for i in range(9):
        means = []
        for window in windows:
            similar = sorted(((max(float(units[i] @ units[j]), 0.0), j) for j in range(9)), reverse=True)[:window]
            means.append(sum(w * float(scores[j]) for w, j in similar) / sum(w for w, _ in similar))
        assert float(result[i]) == pytest.approx(np.mean(means), abs=1e-5)


def test_a_window_of_one_changes_nothing():
    scores = torch.rand(5, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(rescored(scores, torch.zeros(5, 3), (1,)), scores)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: patch_scores(patches([4])), "1 images"),
        (lambda: patch_scores(patches([4, 0])), r"\[0, 4\] patches"),
        (lambda: patch_scores(patches([4, 4]), 0.0), "share of 0.0"),
        (lambda: neighborhood_means(torch.zeros(1, 1, 2, 2), 2), "odd"),
        (lambda: mutual_maps([]), "needs at least one layer"),
        (lambda: rescored(torch.zeros(2), torch.zeros(2, 1), (0,)), "1 or more"),
    ],
)
def test_invalid_arguments_raise(call, words):
    with pytest.raises(ValueError, match=words):
        call()
