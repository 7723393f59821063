# SPDX-License-Identifier: Apache-2.0
import torch

from anomalib_pose.compare import attenuate_unsupported


def test_supported_maps_do_not_change() -> None:
    maps = torch.rand(2, 40, 60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attenuate_unsupported(maps, torch.zeros_like(maps)), maps)


def test_support_residual_of_five_percent_halves_the_map() -> None:
    maps = torch.rand(1, 40, 60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attenuate_unsupported(maps, torch.full_like(maps, 0.05)), maps / 2)
    torch.testing.assert_close(attenuate_unsupported(maps, torch.full_like(maps, 0.2)), maps / 5)


def test_attenuation_is_local() -> None:
    maps, support_residual = torch.ones(1, 200, 200), torch.zeros(1, 200, 200)
    support_residual[0, 100, 50] = 1.0
    attenuated = attenuate_unsupported(maps, support_residual)[0]
    assert attenuated[100, 50] < 0.15
    assert attenuated[100, 51] < 0.2
    away = (torch.arange(200)[:, None] - 100).abs().maximum((torch.arange(200) - 50).abs()) > 8
    assert torch.equal(attenuated[away], torch.ones_like(attenuated[away]))
