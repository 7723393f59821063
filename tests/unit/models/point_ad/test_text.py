# SPDX-License-Identifier: Apache-2.0
"""Texts are evaluated up to their ends; prompts are learned tokens at fixed positions; the ensemble is WinCLIP's."""

import pytest
import torch
from anomalib.models.image.winclip.prompting import create_prompt_ensemble
from torch.nn import functional

from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.text import direction, end_positions, ensemble_features


def test_tokens_after_the_end_change_nothing(small):
    text = small.text
    prompts = PromptLearner(text, deep_sets=3)
    tokens = prompts.tokens(text)
    assert tokens.shape[1] == 17
    padding = torch.randn(2, 60, text.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = text(torch.cat([tokens, padding], 1), end_positions(prompts.ids), prompts.deep)
        short = text(tokens, end_positions(prompts.ids), prompts.deep)
    torch.testing.assert_close(whole, short, rtol=0, atol=2e-6)
    assert end_positions(prompts.ids).tolist() == [15, 16]


def test_learned_tokens_are_at_their_positions(small):
    text = small.text
    prompts = PromptLearner(text, prompt_length=5, deep_sets=2, deep_length=3, seed=1)
    tokens = prompts.tokens(text)
    fixed = text.embed(text.tokenize(["object.", "damaged object."]))
    assert torch.equal(tokens[0, 1:6], prompts.normal)
    assert torch.equal(tokens[1, 1:6], prompts.abnormal)
    assert torch.equal(tokens[:, 0], fixed[:, 0])
    assert torch.equal(tokens[0, 6:9], fixed[0, 1:4])
    assert torch.equal(tokens[1, 6:10], fixed[1, 1:5])
    states = text.states(tokens, prompts.deep)
    # the second block reads its own tokens at positions 1..3 and ignores those of the first block
    changed = tokens.clone()
    changed[:, 1:4] += 1
    other = text.states(changed, prompts.deep)
    assert not torch.allclose(states[0][:, 0:4], other[0][:, 0:4])
    with torch.no_grad():
        prompts.deep[1] += 1
    third = text.states(tokens, prompts.deep)
    assert torch.equal(third[1], states[1])
    assert torch.equal(third[2][:, 0], states[2][:, 0])
    assert not torch.allclose(third[2][:, 1], states[2][:, 1])


def test_prompts_are_seeded(small):
    one, same, other = (PromptLearner(small.text, deep_sets=3, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.normal, other.normal)
    values = torch.cat([value.flatten() for value in one.parameters()])
    assert values.std().item() == pytest.approx(0.02, rel=0.1)
    assert {name: tuple(value.shape) for name, value in one.state_dict().items()} == {
        "normal": (12, 64),
        "abnormal": (12, 64),
        "deep": (3, 4, 64),
    }


def test_paper_rounds_deep_tokens_to_half_precision(small):
    exact, rounded = (PromptLearner(small.text, deep_sets=2, paper=half) for half in (False, True))
    difference = (exact(small.text) - rounded(small.text)).abs().max()
    assert 0 < difference < 1e-3
    with torch.no_grad():
        exact.deep.copy_(exact.deep.half())
    assert torch.equal(exact(small.text), rounded(small.text))


def test_sizes_that_do_not_fit_are_refused(small):
    with pytest.raises(ValueError, match=r"deep_sets should be 0 to 3, .* got 8"):
        PromptLearner(small.text)
    with pytest.raises(ValueError, match="between 1 and prompt_length, got 4 and 3"):
        PromptLearner(small.text, prompt_length=3, deep_sets=1)
    with pytest.raises(ValueError, match="is too long: this CLIP reads 77 tokens"):
        PromptLearner(small.text, prompt_length=75, deep_sets=1)
    with pytest.raises(ValueError, match="reads 77 tokens"):
        small.text.encode(["bagel " * 76])
    small.text.encode(["bagel " * 75])


def test_the_ensemble_averages_all_prompts(configuration):
    import json

    import open_clip

    from anomalib_pose.models.point_ad.clip import Clip

    truth = open_clip.CLIP(**json.loads(configuration.read_text())).eval()
    features = ensemble_features(Clip(truth).text, "cable_gland")
    with torch.no_grad():
        means = [truth.encode_text(open_clip.tokenize(part)).mean(0) for part in create_prompt_ensemble("cable gland")]
    expected = functional.normalize(torch.stack(means), dim=-1)
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(direction(features), (expected[1] - expected[0]) / 0.07, rtol=0, atol=5e-5)
