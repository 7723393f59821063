# SPDX-License-Identifier: Apache-2.0
"""The papers' comparison against golden arrays computed independently in float64."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anomalib_pose.compare import Comparator, NetworkSettings, PaperComparator
from anomalib_pose.compare.maps import gaussian_blur_mirrored, squared_difference
from anomalib_pose.compare.paper import paper_map

FULL_SHAPES = ((24, 112, 112), (32, 56, 56), (56, 28, 28), (160, 14, 14))


@pytest.fixture(scope="module")
def unit(shared):
    spec = importlib.util.spec_from_file_location("golden_formula", shared / "reference" / "golden_formula.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda name, shape: torch.from_numpy(
        module.unit(name, int(np.prod(shape))).astype(np.float32).reshape(1, *shape)
    )


@pytest.mark.parametrize(("rgb_term", "suffix"), [(True, ""), (False, "_no_rgb")])
def test_small_golden(shared, rgb_term, suffix):
    golden = {k: torch.from_numpy(v) for k, v in np.load(shared / "reference" / "comparator_golden_small.npz").items()}
    sides = {
        side: (golden[f"{side}_rgb"][None], [golden[f"{side}_feat_{i}"][None] for i in range(4)])
        for side in ("query", "reference")
    }
    for i in range(4):
        difference = squared_difference(sides["query"][1][i], sides["reference"][1][i])[0]
        torch.testing.assert_close(difference, golden[f"layer_diff_{i}"], rtol=2e-6, atol=0)
    (query, query_features), (reference, reference_features) = sides["query"], sides["reference"]
    result = paper_map(query, reference, query_features, reference_features, rgb_term=rgb_term)[0]
    torch.testing.assert_close(result, golden[f"smoothed{suffix}"], rtol=2e-6, atol=0)
    torch.testing.assert_close(result.max(), golden[f"score{suffix}"], rtol=2e-6, atol=0)
    raw = paper_map(query, reference, query_features, reference_features, blur_sigma=0.0)[0]
    torch.testing.assert_close(raw, golden["raw_map"], rtol=2e-6, atol=0)


@pytest.mark.parametrize(("rgb_term", "suffix"), [(True, ""), (False, "_no_rgb")])
def test_full_golden(shared, unit, rgb_term, suffix):
    golden = np.load(shared / "reference" / "comparator_golden_full.npz")
    images, features = {}, {}
    for side in ("query", "reference"):
        images[side] = unit(f"cmp.full.{side}", (3, 224, 224))
        features[side] = [unit(f"cmp.full.{side}.feat.{i}", shape) for i, shape in enumerate(FULL_SHAPES)]
    result = paper_map(
        images["query"], images["reference"], features["query"], features["reference"], rgb_term=rgb_term
    )[0]
    np.testing.assert_allclose(result.numpy(), golden[f"smoothed{suffix}"], rtol=2e-6)
    np.testing.assert_allclose(result.max().item(), golden[f"score{suffix}"], rtol=2e-6)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 4.0, 9.0])
def test_blur_equals_scipy_for_kernels_larger_than_the_image(sigma):
    maps = torch.rand(2, 23, 31, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.stack([gaussian_filter(m.numpy(), sigma) for m in maps])
    np.testing.assert_allclose(gaussian_blur_mirrored(maps, sigma).numpy(), expected, rtol=1e-9)


def test_comparator_resizes_the_shorter_side_and_back():
    comparator = PaperComparator(NetworkSettings("test_efficientnet.r160_in1k", (0, 1)), image_size=64)
    comparator.extractor.loaded.fill_(value=True)
    assert isinstance(comparator, Comparator)
    query = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    reference = query.clone()
    reference[1, :, 40:60, 70:90] = 0
    alpha = torch.zeros(2, 96, 128)
    result = comparator(query, reference, alpha)
    assert result.shape == (2, 96, 128)
    assert result[0].abs().max() == 0
    row, column = divmod(int(result[1].argmax()), 128)
    assert 36 <= row < 64
    assert 66 <= column < 94
    torch.testing.assert_close(comparator.score(result, alpha), torch.stack([result[0].max(), result[1].max()]))
