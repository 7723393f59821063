# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from anomalib_pose.compare.query_content import has_content

SIZE = 64


def photograph() -> torch.Tensor:
    """A gray square on white (3, SIZE, SIZE)."""
    image = torch.ones(3, SIZE, SIZE)
    image[:, 20:44, 20:44] = 0.4
    return image


def with_pixel(value: float) -> torch.Tensor:
    image = photograph()
    image[1, 30, 30] = value
    return image


def noise(deviation: float, level: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (level + deviation * torch.randn(3, 128, 128, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(photograph(), True, id="photograph"),
        pytest.param(0.05 * photograph(), True, id="dark photograph"),
        pytest.param(with_pixel(0.9), True, id="one bright pixel"),
        pytest.param(torch.zeros(3, SIZE, SIZE), False, id="black"),
        pytest.param(torch.ones(3, SIZE, SIZE), False, id="white"),
        pytest.param(torch.tensor([0.2, 0.5, 0.7])[:, None, None].expand(3, SIZE, SIZE), False, id="one color"),
        pytest.param(noise(3 / 255, 0.0), False, id="noise on black"),
        pytest.param(noise(3 / 255, 0.5), False, id="noise on gray"),
        pytest.param(with_pixel(float("nan")), False, id="one NaN pixel"),
        pytest.param(with_pixel(float("inf")), False, id="one infinite pixel"),
        pytest.param(torch.full((3, SIZE, SIZE), float("nan")), False, id="all NaN"),
        pytest.param(torch.zeros(3, 1, 1), False, id="one pixel"),
        pytest.param(photograph()[:, 18:26, 18:26], False, id="eight pixels"),
        pytest.param(photograph()[:, :, 18:26], False, id="eight columns"),
    ],
)
def test_content_of_images(image, expected):
    other_images = torch.stack([image, image])
    assert has_content(other_images).tolist() == [expected, expected]
