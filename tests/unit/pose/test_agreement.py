# SPDX-License-Identifier: Apache-2.0
"""Structural residual and silhouette overlap, against a loop over neighborhoods and under other light."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomalib_pose.geometry import Camera, look_at
from anomalib_pose.pose import Query
from anomalib_pose.pose.agreement import box_means, measure_agreement, structure_residual
from anomalib_pose.scene import white_foreground
from sample_scenes import make_ring, make_toy


def random_images(seed: int = 0, height: int = 24, width: int = 40) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def loop_residual(image: np.ndarray, rendering: np.ndarray, region: np.ndarray, radius: int) -> float:
    """Compute the residual pixel by pixel, with means over the region and moments about each pixel's own mean."""
    deviations = []
    for values in (image, rendering):
        deviation = np.zeros_like(values)
        for y, x in zip(*region.nonzero(), strict=True):
            window = np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            deviation[:, y, x] = values[:, y, x] - values[:, *window][:, region[window]].mean(1)
        deviations.append(deviation)
    total = weights = 0.0
    for y, x in zip(*region.nonzero(), strict=True):
        window = np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        first, second = (deviation[:, *window][:, region[window]] for deviation in deviations)
        count = region[window].sum()
        pairs = ((first, first), (second, second), (first, second))
        image_variance, rendering_variance, covariance = ((a * b).sum() / count for a, b in pairs)
        weight = min(0.05, (rendering_variance + 1e-5) ** 0.5)
        total += weight * (covariance + 1e-5) / ((image_variance + 1e-5) * (rendering_variance + 1e-5)) ** 0.5
        weights += weight
    return 1 - total / weights


@pytest.mark.parametrize("radius", [1, 4, 30])
def test_box_means_equal_a_uniform_filter(radius):
    values = random_images(3)[0]
    expected = ndimage.uniform_filter(values.double().numpy(), (0, 2 * radius + 1, 2 * radius + 1), mode="constant")
    np.testing.assert_allclose(box_means(values, radius), expected, atol=1e-6)


def test_the_residual_equals_a_loop_over_pixels():
    image, rendering = random_images()
    rendering = 0.7 * image + 0.3 * rendering
    rendering[:, :, 20:] = 0.4 + 0.01 * rendering[:, :, 20:]  # hardly textured
    region = torch.rand(24, 40, generator=torch.Generator().manual_seed(1)) > 0.3
    expected = loop_residual(image.double().numpy(), rendering.double().numpy(), region.numpy(), radius=2)
    assert structure_residual(image, rendering, region) == pytest.approx(expected, abs=2e-5)


def test_the_residual_ignores_light_and_measures_structure():
    image, unrelated = random_images()
    everywhere = torch.ones(24, 40, dtype=torch.bool)
    assert structure_residual(0.5 * image + 0.2, image, everywhere) == pytest.approx(0, abs=1e-3)
    assert structure_residual(1 - image, image, everywhere) == pytest.approx(2, abs=1e-3)
    assert structure_residual(unrelated, image, everywhere) == pytest.approx(1, abs=0.1)


def test_flat_images_have_no_residual_and_an_empty_region_has_one():
    flat = torch.full((3, 24, 40), 0.5)
    everywhere = torch.ones(24, 40, dtype=torch.bool)
    assert structure_residual(flat, flat + 0.2, everywhere) == pytest.approx(0, abs=1e-4)
    assert structure_residual(flat, flat, ~everywhere) == 1.0


def test_a_defect_raises_the_residual_only_in_its_neighborhood():
    image, _ = random_images(height=80, width=80)
    defective = image.clone()
    defective[:, :16, :16] = 0
    everywhere = torch.ones(80, 80, dtype=torch.bool)
    assert structure_residual(defective, image, everywhere) < 0.1


def test_a_rendering_of_a_few_pixels_agrees_with_no_photograph():
    scene = make_toy()
    axis, image = torch.tensor([0.0, 0, 1]), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    near, far = (look_at(torch.tensor([0.0, -distance, 0.3]), torch.zeros(3), axis) for distance in (3.0, 300.0))
    query = Query(image, Camera.from_fov(near, 0.7, 64, 64).K, None)
    assert measure_agreement(scene, query, near)[1] == 1
    assert measure_agreement(scene, query, far)[1] < 0.2  # each Gaussian covers a pixel or more


def test_a_hole_missing_from_the_mask_does_not_lower_the_overlap():
    scene = make_ring()
    above = look_at(torch.tensor([0.0, 0.0, 3.0]), torch.zeros(3), torch.tensor([0.0, 1, 0]))
    camera = Camera.from_fov(above, 0.7, 64, 64)
    image = scene.render(camera, torch.ones(3)).rgb.permute(2, 0, 1).clamp(0, 1)
    closed = ndimage.binary_fill_holes(white_foreground(image[None])[0].numpy())
    query = Query(image, camera.K, torch.from_numpy(closed).float())
    residual, overlap = measure_agreement(scene, query, above)
    assert overlap > 0.87  # a soft edge of half a pixel; 0.72 with the hole
    assert residual == pytest.approx(0, abs=1e-3)
    moved = above.clone()
    moved[0, 3] += 0.3
    assert measure_agreement(scene, query, moved)[1] < overlap - 0.1
