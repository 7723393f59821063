# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from anomalib_pose.geometry import Camera
from anomalib_pose.scene.density import AdaptiveDensity, Relocation, split_evenly
from anomalib_pose.scene.gaussian_scene import RAW_NAMES
from anomalib_pose.scene.parameters import GaussianParameters

RATES = dict.fromkeys(RAW_NAMES, 0.01)
UNCHANGED = dict.fromkeys(RAW_NAMES, 1.0)


def make_parameters(
    count: int = 10, opacity: float = 0.5, scale: float = 0.1, sh_degree: int = 0
) -> GaussianParameters:
    generator = torch.Generator().manual_seed(0)
    raw = {
        "means": torch.randn(count, 3, generator=generator),
        "quats": torch.randn(count, 4, generator=generator),
        "log_scales": torch.full((count, 3), math.log(scale)),
        "logit_opacities": torch.full((count,), math.log(opacity / (1 - opacity))),
        "sh": torch.randn(count, (sh_degree + 1) ** 2, 3, generator=generator),
    }
    return GaussianParameters(raw, RATES, sh_degree)


def one_step(parameters: GaussianParameters) -> None:
    sum(tensor.square().sum() for tensor in parameters.raw.values()).backward()
    parameters.step(UNCHANGED)


@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_split_copies_look_like_one_along_a_ray(copies):
    """N equal Gaussians on one ray have the same integral as the Gaussian that they replace (MCMC, equation 9)."""
    opacity, scale = torch.tensor([0.8]), torch.tensor([[0.3, 0.3, 0.3]])
    new_opacity, new_scale = split_evenly(opacity, scale, torch.tensor([copies]))
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    single = 0.8 * torch.exp(-0.5 * (x / 0.3) ** 2)
    copied = 1 - (1 - new_opacity.double() * torch.exp(-0.5 * (x / new_scale[0, 0].double()) ** 2)) ** copies
    assert abs(copied.max() - 0.8) < 1e-6
    assert abs(torch.trapezoid(copied, x) / torch.trapezoid(single, x) - 1) < 1e-5


def test_relocation_moves_dead_gaussians_and_grows_to_the_cap():
    parameters = make_parameters(20)
    with torch.no_grad():
        parameters.raw["logit_opacities"][:5] = -8
    one_step(parameters)
    dead = parameters.raw["means"][:5].detach().clone()
    living = parameters.raw["means"][5:].detach().clone()
    control = Relocation(cap=26, start=1, stop=100, every=1, growth=0.5, noise=0.0)
    control.after_step(parameters, 1, torch.Generator().manual_seed(0))
    assert len(parameters) == 26
    assert (parameters.raw["logit_opacities"].sigmoid() > 0.005).all()
    nearest = torch.cdist(parameters.raw["means"].detach()[:5], living).min(1).values
    assert nearest.max() < 1e-6
    assert torch.cdist(parameters.raw["means"].detach(), dead).min() > 0
    one_step(parameters)  # the optimizer accepts the new number


def test_moments_follow_their_gaussians():
    parameters = make_parameters(6)
    one_step(parameters)
    moments = parameters.optimizer.state[parameters.raw["means"]]["exp_avg"].clone()
    parameters.keep(torch.tensor([True, False, True, True, False, True]))
    remaining = parameters.optimizer.state[parameters.raw["means"]]["exp_avg"]
    torch.testing.assert_close(remaining, moments[[0, 2, 3, 5]])
    parameters.append({name: tensor.detach()[:2] for name, tensor in parameters.raw.items()})
    grown = parameters.optimizer.state[parameters.raw["means"]]["exp_avg"]
    torch.testing.assert_close(grown, torch.cat([moments[[0, 2, 3, 5]], torch.zeros(2, 3)]))


def test_higher_coefficients_have_a_twentieth_of_the_rate():
    parameters = make_parameters(4, sh_degree=1)
    before = parameters.raw["sh"].detach().clone()
    one_step(parameters)
    change = (parameters.raw["sh"].detach() - before).abs()
    torch.testing.assert_close(change[:, 0], torch.full((4, 3), 0.01), rtol=1e-3, atol=0)
    torch.testing.assert_close(change[:, 1:], torch.full((4, 3, 3), 0.0005), rtol=1e-2, atol=0)


def test_the_optimizer_continues_from_its_state_dict():
    first = make_parameters(5)
    one_step(first)
    second = GaussianParameters.from_state(first.state_dict(), RATES, 0, torch.device("cpu"))
    for _ in range(3):
        one_step(first)
        one_step(second)
    for name in RAW_NAMES:
        torch.testing.assert_close(first.raw[name], second.raw[name], rtol=0, atol=0)


def test_adaptive_density_clones_small_and_splits_large():
    parameters = make_parameters(4)
    with torch.no_grad():
        parameters.raw["log_scales"][1] = math.log(0.5)  # above 1 % of the extent 10
        parameters.raw["log_scales"][0] = math.log(0.05)
        parameters.raw["means"][:] = torch.tensor([0.0, 0.0, 4.0])
    camera = Camera(torch.eye(4), torch.tensor([[20.0, 0, 10], [0, 20.0, 10], [0, 0, 1]]), 20, 20)
    control = AdaptiveDensity(extent=10.0, start=0, stop=1000, every=1, reset_every=10**6, threshold=1.0)
    # 0.6 along x at depth 4 with focal 20 is 0.12 a pixel, times half the width: 1.2 in device coordinates.
    parameters.raw["means"].grad = torch.tensor([[0.6, 0, 0], [0, 0.6, 0], [0.4, 0, 0], [0, 0, 9.0]])
    control.before_step(parameters, camera, 1)
    control.after_step(parameters, 1, torch.Generator().manual_seed(0))
    scales = parameters.raw["log_scales"].exp()[:, 0].tolist()
    assert sorted(round(scale, 4) for scale in scales) == [0.05, 0.05, 0.1, 0.1, 0.3125, 0.3125]


def test_adaptive_density_resets_and_prunes():
    parameters = make_parameters(4)
    with torch.no_grad():
        parameters.raw["logit_opacities"][0] = -9
    camera = Camera(torch.eye(4), torch.eye(3), 20, 20)
    control = AdaptiveDensity(extent=10.0, start=0, stop=1000, every=1, reset_every=2, threshold=1.0)
    parameters.raw["means"].grad = torch.full((4, 3), 9.0)
    control.before_step(parameters, camera, 1)
    control.after_step(parameters, 1, torch.Generator().manual_seed(0))
    assert (parameters.raw["logit_opacities"].sigmoid() >= 0.005).all()
    control.after_step(parameters, 2, torch.Generator().manual_seed(0))
    assert parameters.raw["logit_opacities"].sigmoid().max() <= 0.0101
