# SPDX-License-Identifier: Apache-2.0
"""Published files are read strictly, converted completely, and never unpickled."""

import pytest
import torch
from torch import nn

from anomalib_pose.cli import run_command
from anomalib_pose.models.looking3d.checkpoint import convert, load_part, modules, read_checkpoint
from anomalib_pose.models.looking3d.encoder import Encoder


def test_every_published_entry_is_loaded_or_known_as_unused(published, published_weights, shared):
    import json

    layout = json.loads((shared / "reference" / "looking3d_checkpoint_layout.json").read_text())["state_dicts"]
    weights = read_checkpoint(published)
    for part, module in modules().items():
        load_part(module, weights[part], part)
        for name, value in module.state_dict().items():
            assert torch.equal(value, published_weights[part][name])
        dropped = {*published_weights[part]} - {*weights[part]}
        unused = {
            entry["key"] for entry in layout[part.removesuffix("_ema")]["entries"] if not entry["used_in_inference"]
        }
        assert dropped == {name for name in unused if not name.endswith("num_batches_tracked")}


def test_the_command_writes_only_entries_for_inference(published, tmp_path):
    target = tmp_path / "new" / "weights.pt"
    run_command("convert-checkpoint", ["looking3d", str(published), str(target)])
    source, converted = read_checkpoint(published), read_checkpoint(target)
    assert {*converted} == {"encoder", "projector", "attention_decoder"}
    for part, weights in converted.items():
        assert {*weights} == {*source[part]}
        assert all(torch.equal(value, source[part][name]) for name, value in weights.items())
    # 4 bytes for each number that inference reads, and little more
    assert target.stat().st_size == pytest.approx(4 * 30_356_293, rel=0.01)
    assert [path.name for path in target.parent.iterdir()] == ["weights.pt"]


def test_the_option_training_keeps_the_moving_averages(published, tmp_path):
    target = tmp_path / "weights.pt"
    run_command("convert-checkpoint", ["looking3d", str(published), str(target), "--training"])
    assert {"encoder_ema", "projector_ema"} < {*read_checkpoint(target)}
    run_command("convert-checkpoint", ["looking3d", str(target), str(tmp_path / "again.pt")])
    with pytest.raises(ValueError, match="encoder_ema is missing"):
        convert(tmp_path / "again.pt", tmp_path / "third.pt", training=True)
    assert not (tmp_path / "third.pt").exists()


def test_older_names_of_the_pyramid_are_accepted(published_weights, tmp_path):
    older = {
        part: {
            ".".join(words[:3] + words[4:]) if (words := name.split("."))[0] == "fpn" else name: value
            for name, value in weights.items()
        }
        for part, weights in published_weights.items()
    }
    torch.save(older, tmp_path / "old.pt")
    encoder = Encoder()
    load_part(encoder, read_checkpoint(tmp_path / "old.pt")["encoder"], "encoder")
    own = encoder.state_dict()
    names = [name for name in own if name.startswith("fpn.")]
    assert names
    assert all(torch.equal(own[name], published_weights["encoder"][name]) for name in names)


def test_other_files_are_refused(published_weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="found none at"):
        read_checkpoint(tmp_path / "none.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="Give Looking3D's published"):
        read_checkpoint(tmp_path / "other.pt")
    torch.save(nn.Linear(1, 1), tmp_path / "pickle.pt")
    with pytest.raises(Exception, match="weights_only"):
        read_checkpoint(tmp_path / "pickle.pt")
    changed = {part: dict(weights) for part, weights in published_weights.items()}
    changed["attention_decoder"]["token2.weight"] = torch.zeros(1)
    torch.save(changed, tmp_path / "changed.pt")
    with pytest.raises(ValueError, match=r"attention_decoder do not fit: 1 entries .* 'token2\.weight' first"):
        convert(tmp_path / "changed.pt", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_the_encoder_accepts_other_initial_weights(tmp_path):
    from torchvision.models import resnet18

    source = resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    encoder = Encoder()
    encoder.load_backbone(tmp_path / "resnet18.pth")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.backbone.layer1(encoder.backbone.conv1(x)), source.layer1(source.conv1(x)))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="weights of torchvision's or timm's resnet18"):
        encoder.load_backbone(tmp_path / "bad.pth")
    with pytest.raises(FileNotFoundError, match="encoder_weights"):
        encoder.load_backbone(tmp_path / "none.pth")
