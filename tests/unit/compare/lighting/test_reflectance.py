# SPDX-License-Identifier: Apache-2.0
"""Reflectance: closed form, layout of the published network, and comparators under another light."""

import math

import pytest
import torch
from torch.nn import functional as F

from anomalib_pose.compare import (
    CalibratedComparator,
    LayerWeights,
    NetworkSettings,
    ScoringSettings,
    WindowSettings,
    make_comparator,
)
from anomalib_pose.compare.lighting.reflectance import Reflectance, ReflectanceNetwork
from anomalib_pose.compare.paper import ProductComparator
from anomalib_pose.render.reflectance import reflectance, reflectance_of_color


def colored(size: int = 64) -> torch.Tensor:
    """Draw a disc with color patches on white."""
    ticks = torch.linspace(-1, 1, size)
    v, u = torch.meshgrid(ticks, ticks, indexing="ij")
    phase = torch.stack([3 * u + v, 2 * v - u, 4 * u * v])
    return torch.where(u.square() + v.square() < 0.6, 0.5 + 0.3 * torch.sin(3 * phase), 1.0)[None]


def disc(size: int = 64) -> torch.Tensor:
    return (colored(size) < 1).all(1).float()


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((32, 3, 3, 3), (32, 32, 3, 3), (32, 32, 3, 3), (4, 32, 3, 3))
    result = {}
    for number, shape in enumerate(shapes):
        result[f"decom.{2 * number}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(9 * shape[1])
        result[f"decom.{2 * number}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return result


def test_closed_form_equals_values_computed_by_hand():
    result = reflectance(torch.tensor([0.6, 0.3, 0.0]).view(1, 3, 1, 1)).flatten().tolist()
    light = 0.52 * 0.6 + 0.53 * 0.3 + 0.007
    assert result == pytest.approx([min(1, 0.6 / light), 0.3 / light, 0.0], abs=1e-6)


def test_closed_form_does_not_depend_on_exposure_or_gray_level():
    image = colored()
    bright, dark = reflectance(image, 1e-6), reflectance(0.4 * image, 1e-6)
    torch.testing.assert_close(bright, dark, atol=1e-4, rtol=0)
    grays = torch.linspace(0.1, 1, 10)[:, None, None, None].expand(-1, 3, 1, 1)
    assert float(reflectance(grays, 1e-6).std()) < 1e-4


@pytest.mark.parametrize("nested", [False, True])
def test_network_equals_four_convolutions(nested, tmp_path):
    weights = state()
    torch.save({"state_dict": {"model_R": weights}} if nested else weights, tmp_path / "init_low.pth")
    network = ReflectanceNetwork(tmp_path / "init_low.pth")
    assert sum(parameter.numel() for parameter in network.parameters()) == 20_548
    hidden = image = colored()
    for number in range(4):
        name = f"decom.{2 * number}"
        hidden = F.conv2d(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
        hidden = F.relu(hidden) if number == 3 else F.leaky_relu(hidden, 0.2)
    expected = hidden[:, :3].clamp(0, 1)
    result = network(image)
    torch.testing.assert_close(result[..., 6:-6, 6:-6], expected[..., 6:-6, 6:-6])
    assert bool((result[..., :6, :] == expected[..., 9, 9][..., None, None]).all())
    assert bool((result[..., -6:] == expected[..., 9, 9][..., None, None]).all())


def test_wrong_weights_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match="decomposition network in a file, found none at"):
        Reflectance(str(tmp_path / "none.pth"))
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"four convolutions.*\(\(3,\),\)"):
        Reflectance(str(tmp_path / "other.pth"))


def test_illumination_comparator_ignores_exposure_and_detects_a_stain():
    """Half the light raises the score of ``calibrated`` like a stain does, and hardly that of ``illumination``."""
    reference, alpha = colored(), disc()
    dim = torch.where(alpha[:, None] > 0, 0.5 * reference, reference)
    stained = dim.clone()
    stained[:, 0, 28:36, 28:36], stained[:, 2, 28:36, 28:36] = 0.45, 0.02
    result = {}
    for name in ("calibrated", "illumination"):
        comparator = make_comparator(name)
        result[name] = [
            float(comparator.score(comparator(query, reference, alpha), alpha)) for query in (reference, dim, stained)
        ]
    same, dimmed, stain = result["illumination"]
    assert stain - same > 4 * (dimmed - same)
    same, dimmed, stain = result["calibrated"]
    assert stain - same < 2 * (dimmed - same)


def test_self_normalization_equals_a_loop():
    reference, alpha = colored(), disc()
    query = (reference + 0.1 * torch.rand(reference.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    plain, level = (
        CalibratedComparator(
            weights=LayerWeights(color=1.0, structure=0.0),
            scoring=ScoringSettings(blur_sigma=0.0, self_normalization=factor),
        )
        for factor in (0.0, 0.7)
    )
    before, after = (comparator.compare_windows(query, reference, alpha)[0] for comparator in (plain, level))
    roots = [float(before[v, u]) ** 0.5 for v in range(64) for u in range(64) if alpha[0, v, u] > 0.5]
    torch.testing.assert_close(after, before / (1 + 0.7 * (sum(roots) / len(roots)) ** 2), atol=1e-4, rtol=1e-4)


class _Colors(torch.nn.Module):
    """Stands in for a network: returns the image, and the image at half the size."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image, F.avg_pool2d(image, 2)]


def test_product_map_equals_its_definition(monkeypatch):
    reference = colored()
    query = reference.clone()
    query[:, 0, 20:30, 20:30] *= 0.3
    gray = torch.full_like(reference, 0.5)
    comparator = ProductComparator(NetworkSettings("resnet18", pretrained=False), image_size=0, blur_sigma=0.0)
    monkeypatch.setattr(comparator, "extractor", _Colors())
    result = comparator(query, reference, disc())
    expected = torch.zeros(1, 64, 64)
    for size in (1, 2):
        parts = [F.avg_pool2d(image, size) for image in (query, reference, reflectance(query), reflectance(reference))]
        product = (parts[0] - parts[1]).square().sum(1) * (parts[2] - parts[3]).square().sum(1)
        expected += F.interpolate(product[:, None], (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
    # the product misses gray on gray
    assert float(comparator(0.6 * gray, gray, disc()).max()) < 1e-4


def test_rendered_reflectance_replaces_that_of_the_reference():
    comparator = make_comparator("illumination", window=WindowSettings(64))
    reference, query, alpha = colored(), colored().flip(1), disc()
    plain = comparator(query, reference, alpha)
    own = comparator(query, reference, alpha, comparator.reflectance(reference))
    assert (own - plain).abs().max() < 0.05 * plain.max()  # decomposed before the window is resized, not after
    same = comparator(query, reference, alpha, comparator.reflectance(query))
    assert same.max() < 0.7 * plain.max()


def test_product_uses_a_rendered_reflectance(monkeypatch):
    comparator = ProductComparator(NetworkSettings("resnet18", pretrained=False), image_size=0)
    monkeypatch.setattr(comparator, "extractor", _Colors())
    reference, query, alpha = colored(), colored().flip(1), disc()
    plain = comparator(query, reference, alpha)
    torch.testing.assert_close(comparator(query, reference, alpha, comparator.reflectance(reference)), plain)
    same = comparator(query, reference, alpha, comparator.reflectance(query))
    assert plain.max() > 0
    assert same.max() == 0  # nothing differs in one of the domains


def test_reflectance_of_a_color_equals_that_of_a_uniform_image():
    color = torch.tensor([0.5, 0.2, 0.1])
    torch.testing.assert_close(reflectance_of_color(color), reflectance(color[None, :, None, None]).flatten())
