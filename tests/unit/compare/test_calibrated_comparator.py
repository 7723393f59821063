# SPDX-License-Identifier: Apache-2.0
"""The calibrated comparison on a synthetic object whose references are slightly blurred and shifted."""

import numpy as np
import pytest
import torch

from anomalib_pose.compare import (
    CalibratedComparator,
    Comparator,
    LayerWeights,
    NetworkSettings,
    ScoringSettings,
    WindowSettings,
)
from anomalib_pose.compare.maps import gaussian_blur_mirrored, shifted
from anomalib_pose.compare.residual_statistics import (
    FLOOR,
    OUTLINE_DISTANCES,
    PRIOR_PIXELS,
    ResidualStatistics,
    outline_zone,
)

SIZE = 120
TINY = "test_efficientnet.r160_in1k"
TRANSFORMER = "test_vit.r160_in1k"


def _view(seed):
    """Draw a disc with colored patches on white; return image and alpha."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    inside = (x - 62) ** 2 + (y - 58) ** 2 < 34**2
    image = np.ones((3, SIZE, SIZE), np.float32)
    image[:, inside] = np.array([0.7, 0.3, 0.2])[:, None]
    for _ in range(12):
        cx, cy = generator.integers(35, 90, 2)
        patch = inside & (abs(x - cx) < generator.integers(3, 8)) & (abs(y - cy) < generator.integers(3, 8))
        image[:, patch] = generator.random(3)[:, None]
    return torch.from_numpy(image), torch.from_numpy(inside.astype(np.float32))


def _pairs(seeds, shift=0.4):
    """Make noisy queries, blurred and shifted references, and alphas."""
    views = [_view(seed) for seed in seeds]
    queries = torch.stack([image for image, _ in views])
    alphas = torch.stack([alpha for _, alpha in views])
    generator = torch.Generator().manual_seed(seeds[0])
    references = torch.stack([gaussian_blur_mirrored(image, 0.6) for image in queries])
    moves = [tuple((shift * (2 * torch.rand(2, generator=generator) - 1)).tolist()) for _ in references]
    references = torch.cat([next(shifted(r[None], [move])) for r, move in zip(references, moves, strict=True)])
    return (queries + 0.01 * torch.randn(queries.shape, generator=generator)).clamp(0, 1), references, alphas


def _comparator(backbone=None):
    comparator = CalibratedComparator(backbone and NetworkSettings(backbone, (0, 1, 2)), window=WindowSettings(96))
    if backbone:
        comparator.extractor.loaded.fill_(value=True)
    comparator.fit_calibration(*_pairs(range(8)))
    return comparator


@pytest.fixture(scope="module", params=[None, TINY])
def comparator(request):
    torch.manual_seed(0)
    return _comparator(request.param)


def test_statistics_equal_numpy():
    generator = torch.Generator().manual_seed(0)
    alphas = torch.stack([_view(0)[1], _view(1)[1]])
    contrasts = torch.rand(2, SIZE, SIZE, generator=generator)
    residuals = torch.rand(2, 3, SIZE, SIZE, generator=generator) * (1 + contrasts[:, None])
    statistics = ResidualStatistics(3, (1.0, 1.0, 1.0))
    statistics.fit(list(residuals), list(contrasts), list(alphas))

    inside = (alphas > 0.5).numpy()
    np.testing.assert_allclose(
        statistics.edges.numpy(), np.quantile(contrasts.numpy()[inside], [0.2, 0.4, 0.6, 0.8]), rtol=1e-5
    )
    zone = outline_zone(alphas).long().numpy()
    bin_index = zone * 5 + np.digitize(contrasts.numpy(), statistics.edges.numpy(), right=True)
    for layer in range(3):
        values = residuals[:, layer].numpy().astype(np.float64)
        prior, prior_square = values[inside].mean(), (values[inside] ** 2).mean()
        for index in np.unique(bin_index):
            values_in_bin = values[bin_index == index]
            total = len(values_in_bin) + PRIOR_PIXELS
            mean = (values_in_bin.sum() + PRIOR_PIXELS * prior) / total
            std = np.sqrt(((values_in_bin**2).sum() + PRIOR_PIXELS * prior_square) / total - mean**2)
            np.testing.assert_allclose(statistics.mean[layer, index].item(), mean, rtol=1e-5)
            expected = max(std, FLOOR * values[inside].std())
            np.testing.assert_allclose(statistics.std[layer, index].item(), expected, rtol=1e-4)


def test_mean_and_standard_deviation_are_interpolated_between_bins():
    statistics = ResidualStatistics(1, (1.0,), contrast_classes=3)
    statistics.edges.copy_(torch.tensor([1.0, 2.0]))
    statistics.mean.copy_(torch.arange(18.0)[None])
    statistics.std.copy_(1 + torch.arange(18.0)[None])
    opacity = torch.tensor([0.0, 0.25, 0.4, 0.5, 0.7, 0.75, 1.0])
    contrast = torch.tensor([0.0, 0.89, 0.95, 1.0, 1.5, 2.04, 9.0])
    # An image of one opacity is at all distances from the outline at once.
    inside_fraction = np.clip(2 * opacity.numpy().astype(float) - 0.5, 0, 1)
    contrast_class = np.interp(contrast.numpy(), [0.9, 1.1, 1.8, 2.2], [0, 1, 1, 2])
    for alpha, zone in zip(opacity, len(OUTLINE_DISTANCES) * inside_fraction, strict=True):
        shape = (1, 5, 5)
        for value, step in zip(contrast, contrast_class, strict=True):
            result = statistics(torch.full((1, *shape), 50.0), value.expand(shape), alpha.expand(shape))
            bin_index = 3 * zone + step
            np.testing.assert_allclose(result, (50 - bin_index) / (1 + bin_index), rtol=1e-4)


def test_zones_are_distances_to_the_outline():
    alpha = torch.zeros(1, 60, 60)
    alpha[0, 20:60] = 1
    zone = outline_zone(alpha)[0, :, 30]
    expected = [
        0 if y < 14 else 1 if y < 20 else 2 if y < 22 else 3 if y < 24 else 4 if y < 28 else 5 for y in range(60)
    ]
    assert zone.tolist() == expected


@pytest.mark.parametrize("kind", ["stain", "missing", "burr"])
def test_defect_scores_above_normal_views_and_is_localized(comparator, kind):
    queries, references, alphas = _pairs(range(20, 26))
    good = comparator.score(comparator(queries, references, alphas), alphas)
    box = {"stain": (50, 60), "missing": (84, 64), "burr": (18, 62)}[kind]
    rows, columns = slice(box[0], box[0] + 8), slice(box[1], box[1] + 8)
    color = {"stain": (0.1, 0.5, 0.1), "missing": (1.0, 1.0, 1.0), "burr": (0.7, 0.3, 0.2)}[kind]
    queries[:, :, rows, columns] = torch.tensor(color)[:, None, None]
    maps = comparator(queries, references, alphas)
    assert comparator.score(maps, alphas).min() > 1.5 * good.max()
    for result in maps:
        row, column = divmod(int(result.argmax()), SIZE)
        assert box[0] - 3 <= row < box[0] + 11
        assert box[1] - 3 <= column < box[1] + 11


def test_shifted_normal_view_scores_below_a_stain(comparator):
    queries, references, alphas = _pairs([30, 31], shift=0.0)
    stained = queries.clone()
    stained[:, :, 50:57, 60:67] *= 0.5
    moved = next(shifted(references, [(1.0, -1.0)]))
    good = comparator.score(comparator(queries, moved, alphas), alphas)
    bad = comparator.score(comparator(stained, references, alphas), alphas)
    assert (bad > 1.2 * good).all()


def test_maps_lie_in_the_image_and_batches_do_not_matter(comparator):
    queries, references, alphas = _pairs([40, 41, 42])
    alphas[1] = torch.roll(alphas[1], 10, 1)
    together = comparator(queries, references, alphas)
    assert together.shape == (3, SIZE, SIZE)
    assert (together >= 0).all()
    for index in range(3):
        alone = comparator(queries[index : index + 1], references[index : index + 1], alphas[index : index + 1])[0]
        torch.testing.assert_close(alone, together[index], atol=1e-4, rtol=1e-4)


def test_finite_without_object_and_without_calibration(comparator):
    queries, references, alphas = _pairs([50, 51])
    empty = torch.zeros_like(alphas)
    for each in (comparator, CalibratedComparator(window=WindowSettings(64))):
        assert isinstance(each, Comparator)
        result = each(queries, references, empty)
        assert torch.isfinite(result).all()
        assert torch.isfinite(each.score(result, empty)).all()
    bare = CalibratedComparator(window=WindowSettings(64))
    bare.fit_calibration(queries, references, empty)
    assert torch.isfinite(bare(queries, references, alphas)).all()


def test_state_dict_keeps_scores(comparator):
    queries, references, alphas = _pairs([60, 61])
    backbone = comparator.extractor.backbone if comparator.extractor else None
    network = backbone and NetworkSettings(backbone, (0, 1, 2), pretrained=False)
    other = CalibratedComparator(network, window=WindowSettings(96))
    other.load_state_dict(comparator.state_dict())
    torch.testing.assert_close(
        other(queries, references, alphas), comparator(queries, references, alphas), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScoringSettings(top_fraction=0.0), "top_fraction"),
        (lambda: WindowSettings(size=8), "size=8"),
        (lambda: WindowSettings(margin=-0.1), "margin=-0.1"),
        (lambda: ScoringSettings(tolerance=-1.0), "tolerance"),
        (lambda: LayerWeights(feature_mix=1.5), "feature_mix"),
        (lambda: LayerWeights(color=0.0, structure=0.0), "weights of color, structure and reflectance"),
        (
            lambda: CalibratedComparator(NetworkSettings(TINY, (0, 1)), weights=LayerWeights(features=(1.0,))),
            "2 weights",
        ),
        (lambda: LayerWeights(second_mix=1.5), "second_mix"),
    ],
)
def test_invalid_settings_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_calibration_needs_a_view():
    none = torch.zeros(0, 3, 8, 8)
    with pytest.raises(ValueError, match="at least one normal view"):
        CalibratedComparator().fit_calibration(none, none, none[:, 0])


def test_map_is_linear_in_two_networks():
    """Without self-normalization the map is linear in the layers: the map of two networks is their weighted mean."""
    torch.manual_seed(0)
    options = {"window": WindowSettings(96), "scoring": ScoringSettings(self_normalization=0.0)}
    networks = NetworkSettings(TINY, (0, 1, 2)), NetworkSettings(TRANSFORMER, ())
    both = CalibratedComparator(
        networks[0], second_network=networks[1], weights=LayerWeights(second_mix=0.25), **options
    )
    first = CalibratedComparator(networks[0], **options)
    second = CalibratedComparator(second_network=networks[1], **options)
    first.extractor.load_state_dict(both.extractor.state_dict())
    second.second.load_state_dict(both.second.state_dict())
    maps = []
    for comparator in (both, first, second):
        for extractor in (comparator.extractor, comparator.second):
            if extractor is not None:
                extractor.loaded.fill_(value=True)
        comparator.fit_calibration(*_pairs(range(4)))
        maps.append(comparator(*_pairs([20, 21])))
    assert (maps[1] - maps[2]).abs().max() > 0.1
    torch.testing.assert_close(maps[0], 0.75 * maps[1] + 0.25 * maps[2], rtol=1e-4, atol=1e-4)


def test_background_in_both_images_has_no_residual():
    torch.manual_seed(0)
    comparator = _comparator(TINY)
    query, reference, alpha = _pairs([3])
    hole = np.s_[..., 44:74, 46:76]
    query[hole], reference[hole], alpha[hole] = 1.0, 1.0, 0.0
    query[..., 40:44, 46:76] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]  # the upper part of the rim
    anomaly_map = comparator(query, reference, alpha)[0]
    assert anomaly_map.max() == anomaly_map[38:46, 44:78].max()
    assert anomaly_map[54:66, 56:66].max() < 1e-3 * anomaly_map.max()
    query[..., 56:62, 58:64] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]  # something hangs in the hole
    assert comparator(query, reference, alpha)[0][56:62, 58:64].mean() > 0.1 * anomaly_map.max()
