# SPDX-License-Identifier: Apache-2.0
"""Published prompts are read strictly, converted completely, and checked against their CLIP."""

import json
import logging
from pathlib import Path

import pytest
import torch

from anomalib_pose.cli import run_command
from anomalib_pose.models.point_ad.checkpoint import convert, load_prompts, read_prompts, write_prompts
from anomalib_pose.models.point_ad.clip import load_clip
from anomalib_pose.models.point_ad.prompts import PromptLearner


@pytest.fixture
def layout(shared) -> list[dict]:
    return json.loads((shared / "reference" / "pointad_checkpoint_layout.json").read_text())["entries"]


def published(layout: list[dict], ids: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    weights = {}
    for entry in layout:
        if entry["dtype"] == "int32":
            row = ids[entry["key"]]
            weights[entry["key"]] = torch.tensor(row + [0] * (77 - len(row)), dtype=torch.int32).view(1, 1, 77)
        else:
            weights[entry["key"]] = torch.randn(entry["shape"], generator=g)
    return weights


@pytest.fixture
def epoch(layout, shared, tmp_path) -> Path:
    content = json.loads((shared / "reference" / "pointad_checkpoint_layout.json").read_text())
    ids = {f"tokenized_prompts_{kind}": content[f"token_ids_{kind}"] for kind in ("pos", "neg")}
    path = tmp_path / "epoch_15.pth"
    torch.save({"prompt_learner": published(layout, ids)}, path)
    return path


def change(path: Path, target: Path, **entries: torch.Tensor | None) -> Path:
    weights = torch.load(path, weights_only=True)["prompt_learner"]
    for name, value in entries.items():
        if value is None:
            del weights[name.replace("__", ".")]
        else:
            weights[name.replace("__", ".")] = value
    torch.save({"prompt_learner": weights}, target)
    return target


def test_published_prompts_are_read(epoch, layout, caplog):
    weights = torch.load(epoch, weights_only=True)["prompt_learner"]
    with caplog.at_level(logging.INFO):
        prompts = read_prompts(epoch)
    assert torch.equal(prompts.normal, weights["ctx_pos"][0, 0])
    assert torch.equal(prompts.abnormal, weights["ctx_neg"][0, 0])
    assert torch.equal(prompts.start, weights["token_prefix_pos"].flatten())
    assert prompts.deep.shape == (8, 4, 768)
    assert all(torch.equal(prompts.deep[k], weights[f"compound_prompts_text.{k}"]) for k in range(8))
    assert len(layout) == 32
    # 16 projections are never read, and CLIP determines the suffixes of the texts
    assert "14 entries are used, 18 are never read" in caplog.text


def test_the_command_writes_only_entries_that_the_model_reads(epoch, tmp_path):
    target = tmp_path / "new" / "cookie.pt"
    run_command("convert-checkpoint", ["pointad", str(epoch), str(target)])
    assert all(torch.equal(*pair) for pair in zip(read_prompts(epoch), read_prompts(target), strict=True))
    assert target.stat().st_size == pytest.approx(4 * (43_008 + 768), rel=0.05)
    assert [path.name for path in target.parent.iterdir()] == ["cookie.pt"]


def test_other_files_are_refused(epoch, tmp_path):
    out = tmp_path / "out.pt"
    with pytest.raises(FileNotFoundError, match="prompts of PointAD"):
        convert(tmp_path / "none.pth", out)
    torch.save({"model": {}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"epoch_15\.pth does, .* but holds \['model'\]"):
        convert(tmp_path / "model.pth", out)
    torch.save({"prompt_learner": torch.nn.Linear(1, 1)}, tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match="weights_only"):
        convert(tmp_path / "pickle.pth", out)
    changed = tmp_path / "changed.pth"
    with pytest.raises(ValueError, match="'ctx_neg' is missing or unknown"):
        convert(change(epoch, changed, ctx_neg=None), out)
    with pytest.raises(ValueError, match="'ctx_more' is missing or unknown"):
        convert(change(epoch, changed, ctx_more=torch.zeros(1)), out)
    with pytest.raises(ValueError, match=r"'compound_prompts_text\.6' is missing"):
        convert(change(epoch, changed, compound_prompts_text__6=None), out)
    with pytest.raises(ValueError, match="as many learned tokens for every text block"):
        convert(change(epoch, changed, compound_prompts_text__6=torch.zeros(3, 768)), out)
    with pytest.raises(ValueError, match="numbers of one width"):
        convert(change(epoch, changed, token_prefix_pos=torch.zeros(1, 1, 1, 512)), out)
    with pytest.raises(ValueError, match="those of neg do not"):
        longer = torch.arange(77, dtype=torch.int32).flip(0).view(1, 1, 77)
        convert(change(epoch, changed, tokenized_prompts_neg=longer), out)
    torch.save({"point_ad_prompts": {"normal": torch.zeros(1, 1)}}, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="abnormal, deep, start is missing or unknown"):
        convert(tmp_path / "own.pt", out)
    assert not out.exists()


def test_written_prompts_are_read_again(small, tmp_path):
    learner, other = (PromptLearner(small.text, deep_sets=3, seed=seed) for seed in (1, 2))
    path = write_prompts(tmp_path / "prompts.pt", learner, small.text)
    load_prompts(other, read_prompts(path), small.text)
    assert torch.equal(other(small.text), learner(small.text))
    with pytest.raises(ValueError, match=r"'deep': \(3, 4, 64\).* this model has .*'deep': \(2, 4, 64\)"):
        load_prompts(PromptLearner(small.text, deep_sets=2), read_prompts(path), small.text)


def test_prompts_of_another_clip_are_refused(small, configuration, tmp_path):
    learner = PromptLearner(small.text, deep_sets=3)
    path = write_prompts(tmp_path / "prompts.pt", learner, small.text)
    other = load_clip(configuration, None, seed=9)
    with pytest.raises(ValueError, match="learned for another CLIP"):
        load_prompts(PromptLearner(other.text, deep_sets=3), read_prompts(path), other.text)
