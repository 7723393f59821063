# SPDX-License-Identifier: Apache-2.0
"""CLIP is loaded by name, tag or file, with the activation of its weights."""

import inspect
import json
import logging
import sys

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from anomalib_pose.models.point_ad.clip import Clip, load_clip

# open_clip 2.24 does not accept this option
BLOCKS = "plain multi-head attention, .* {} tower|does not accept the configuration of other: .*'block_type'"


def make_open_clip(configuration, seed: int = 1, **changes) -> open_clip.CLIP:
    torch.manual_seed(seed)
    return open_clip.CLIP(**{**json.loads(configuration.read_text()), **changes}).eval()


def activations(clip: Clip) -> set[str]:
    return {type(block.mlp.gelu).__name__ for block in [*clip.vision.blocks, *clip.text.blocks]}


def features(clip: Clip, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return clip.vision(clip.vision.normalize(images), 1)[0]


def test_towers_compute_the_features_of_open_clip(configuration):
    for quick in (True, False):
        truth = make_open_clip(configuration, quick_gelu=quick)
        clip = Clip(truth)
        images, ids = torch.rand(2, 3, 64, 64), open_clip.tokenize(["a photo of a bagel", "a damaged bagel on a table"])
        with torch.no_grad():
            expected = truth.encode_image(clip.vision.normalize(images)), truth.encode_text(ids)
            own = features(clip, images), clip.text.encode(["a photo of a bagel", "a damaged bagel on a table"])
        for features_of_tower, truth_of_tower in zip(own, expected, strict=True):
            torch.testing.assert_close(features_of_tower, truth_of_tower, rtol=0, atol=2e-6)


def test_random_weights_are_seeded_and_logged(configuration, caplog):
    images = torch.rand(1, 3, 64, 64)
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        first, second, other = (features(load_clip(configuration, None, seed=seed), images) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, atol=1e-2)
    assert torch.equal(torch.get_rng_state(), state)
    assert "random weights" in caplog.text


@pytest.mark.parametrize("layout", ["open_clip", "openai", "module", "half", "safetensors"])
def test_local_files_in_every_layout(configuration, tmp_path, layout, caplog):
    truth = make_open_clip(configuration)
    weights = {name: value.detach().clone() for name, value in truth.state_dict().items()}
    path = tmp_path / "weights.pt"
    if layout == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(weights, path)
    elif layout == "openai":
        numbers = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}
        del weights["logit_scale"]
        torch.save(weights | {name: torch.tensor(value) for name, value in numbers.items()}, path)
    elif layout == "module":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights.items()}}, path)
    elif layout == "half":
        torch.save({name: value.half() for name, value in weights.items()}, path)
    else:
        torch.save(weights, path)
    with caplog.at_level(logging.INFO):
        clip = load_clip(configuration, path)
    assert str(path) in caplog.text
    assert {value.dtype for value in clip.state_dict().values()} == {torch.float32}
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = truth.encode_image(clip.vision.normalize(images))
    torch.testing.assert_close(features(clip, images), expected, rtol=0, atol=1e-2 if layout == "half" else 2e-6)


def test_files_of_openai_use_quick_gelu(tmp_path, configuration):
    plain = json.loads(configuration.read_text())
    del plain["quick_gelu"]
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    weights = make_open_clip(configuration).state_dict()
    torch.save(weights, tmp_path / "open.pt")
    torch.save(weights | {"input_resolution": torch.tensor(64)}, tmp_path / "openai.pt")
    model = tmp_path / "plain.json"
    assert activations(load_clip(model, tmp_path / "openai.pt")) == {"QuickGELU"}
    assert activations(load_clip(model, tmp_path / "open.pt")) == {"GELU"}
    assert activations(load_clip(model, tmp_path / "open.pt", quick_gelu=True)) == {"QuickGELU"}
    with pytest.raises(ValueError, match="need QuickGELU, but quick_gelu is False"):
        load_clip(model, tmp_path / "openai.pt", quick_gelu=False)


@pytest.mark.parametrize(
    ("name", "tag", "quick"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B-32-quickgelu", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32-quickgelu", "laion400m_e32", True),
    ],
)
def test_tags_select_their_activation(configuration, monkeypatch, caplog, name, tag, quick):
    requested = {}

    def create(model, *, pretrained, force_quick_gelu):
        requested.update(model=model, pretrained=pretrained)
        return make_open_clip(configuration, quick_gelu=force_quick_gelu)

    monkeypatch.setattr(open_clip, "create_model", create)
    with caplog.at_level(logging.INFO):
        clip = load_clip(name, tag)
    assert requested == {"model": name, "pretrained": tag}
    assert activations(clip) == {"QuickGELU" if quick else "GELU"}
    assert f"weights '{tag}', from " in caplog.text


def test_the_call_that_downloads_weights_fits_the_installed_open_clip():
    """The other tests replace ``create_model``; its arguments differ between versions."""
    signature = inspect.signature(open_clip.create_model)
    signature.bind("ViT-B-32", pretrained="openai", force_quick_gelu=True)
    assert "url" in open_clip.get_pretrained_cfg("ViT-B-32", "openai")


def test_clip_stays_frozen(small):
    small.train()
    assert not any(module.training for module in small.modules())
    assert not any(value.requires_grad for value in small.parameters())


def test_unknown_names_and_tags_are_refused(configuration):
    with pytest.raises(ValueError, match=r"got 'ViT-L-14-363'\. Similar names: .*ViT-L-14-336"):
        load_clip("ViT-L-14-363")
    with pytest.raises(ValueError, match=r"a tag of ViT-L-14-336 \(openai\), got 'laion2b'"):
        load_clip("ViT-L-14-336", "laion2b")
    with pytest.raises(ValueError, match=r"a tag of small \(no tags\), got 'openai'"):
        load_clip(configuration, "openai")


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "roberta-ViT-B-32", "convnext_base"])
def test_other_architectures_are_refused_before_anything_is_downloaded(name, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", None)
    with pytest.raises(ValueError, match="PointAD needs"):
        load_clip(name, open_clip.list_pretrained_tags_by_model(name)[0])


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "text_cfg",
            {"wdith": 3},
            "The installed open_clip does not accept the configuration of other: .*'wdith'",
        ),
        ("vision_cfg", {"attentional_pool": True}, "reads its class token"),
        ("vision_cfg", {"pool_type": "avg"}, "reads its class token"),
        ("vision_cfg", {"image_size": [64, 32]}, "square images, but this CLIP takes 64 x 32"),
        ("vision_cfg", {"block_type": "custom"}, BLOCKS.format("image")),
        ("text_cfg", {"block_type": "custom"}, BLOCKS.format("text")),
        ("text_cfg", {"no_causal_mask": True}, "from left to right"),
        ("text_cfg", {"vocab_size": 32000}, "49408 tokens, but this CLIP's tokenizer has 32000"),
    ],
)
def test_towers_of_another_kind_are_refused(configuration, tmp_path, part, changes, message):
    other = json.loads(configuration.read_text())
    other[part].update(changes)
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=message):
        load_clip(tmp_path / "other.json", None)


def test_broken_configurations_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="configuration of CLIP"):
        load_clip(tmp_path / "none.json", None)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="should be JSON"):
        load_clip(tmp_path / "bad.json", None)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="embed_dim, vision_cfg and text_cfg"):
        load_clip(tmp_path / "other.json", None)


def test_files_without_fitting_weights_are_refused(configuration, tmp_path):
    with pytest.raises(FileNotFoundError, match="found none at"):
        load_clip(configuration, tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="found none at"):
        load_clip(configuration, "none.safetensors")
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(ValueError, match="should hold weights of CLIP"):
            load_clip(configuration, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="state dict of CLIP, found a list"):
        load_clip(configuration, tmp_path / "list.pt")
    torch.save(make_open_clip(configuration), tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="weights_only"):
        load_clip(configuration, tmp_path / "pickle.pt")
    program = torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1))
    program.save(tmp_path / "program.pt")
    with pytest.raises(ValueError, match="TorchScript program, which is never run"):
        load_clip(configuration, tmp_path / "program.pt")
    weights = make_open_clip(configuration).state_dict()
    weights["visual.proj"] = weights["visual.proj"][:, :5]
    torch.save(weights, tmp_path / "shape.pt")
    with pytest.raises(ValueError, match=r"1 of \d+ entries .* 'visual\.proj' first"):
        load_clip(configuration, tmp_path / "shape.pt")


def test_a_missing_open_clip_names_the_extra(configuration, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"anomalib-pose\[clip\]\""):
        load_clip(configuration, None)


def test_failed_downloads_name_the_alternative(monkeypatch):
    def offline(*_args, **_kwargs):
        msg = "no connection"
        raise RuntimeError(msg)

    monkeypatch.setattr("open_clip.create_model", offline)
    message = (
        r"weights 'openai' of ViT-B-32-quickgelu could not be downloaded from .*no connection.*--model\.pretrained FILE"
    )
    with pytest.raises(RuntimeError, match=message):
        load_clip("ViT-B-32-quickgelu", "openai")
