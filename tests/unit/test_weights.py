# SPDX-License-Identifier: Apache-2.0
"""Files of weights are read without running what they hold, and written whole."""

import pytest
import torch
from safetensors.torch import save_file

from anomalib_pose import weights as module
from anomalib_pose.weights import is_torchscript, mismatched_keys, read_state_dict, read_weights, write_weights


def test_mismatched_keys_are_listed_in_order():
    own = {"a": torch.zeros(1), "b": torch.zeros(2), "d": torch.zeros(1)}
    assert mismatched_keys(own, {"b": torch.zeros(3), "a": torch.ones(1), "c": torch.zeros(1)}) == ["b", "c", "d"]
    assert mismatched_keys(own, dict(own)) == []


def test_written_weights_are_read_back(tmp_path):
    path = write_weights(tmp_path / "new" / "weights.pt", {"part": {"a": torch.arange(3)}})
    assert torch.equal(read_weights(path, "weights")["part"]["a"], torch.arange(3))
    assert [file.name for file in path.parent.iterdir()] == ["weights.pt"]


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_weights(tmp_path / "weights.pt", {"a": torch.zeros(1)})

    def stop(content, target):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module.torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        write_weights(path, {"a": torch.ones(1)})
    assert read_weights(path, "weights")["a"].item() == 0
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]


def test_safetensors_are_read_and_other_content_with_that_suffix_is_refused(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "weights.safetensors")
    assert torch.equal(read_weights(tmp_path / "weights.safetensors", "weights")["a"], torch.arange(3.0))
    (tmp_path / "bad.safetensors").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"bad\.safetensors should hold prompts"):
        read_weights(tmp_path / "bad.safetensors", "prompts")


@pytest.mark.parametrize("content", [{"a": torch.arange(3)}, {"state_dict": {"a": torch.arange(3)}, "epoch": 1}])
def test_state_dict_is_read_from_the_top_level_and_from_a_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    state_dict = read_state_dict(tmp_path / "weights.pt", "prompts", "PointAD")
    assert list(state_dict) == ["a"]
    assert torch.equal(state_dict["a"], torch.arange(3))


@pytest.mark.parametrize("content", [[1], {"a": 1}, {"state_dict": {"a": "b"}}])
def test_content_other_than_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match=r"weights\.pt should hold a state dict of PointAD, found a (list|dict) with other content"
    ):
        read_state_dict(tmp_path / "weights.pt", "prompts", "PointAD")


class Unsafe:
    ran = False

    def __setstate__(self, state):
        Unsafe.ran = True


def test_no_code_of_a_file_is_run(tmp_path):
    unsafe = Unsafe()
    unsafe.value = 1
    torch.save({"a": unsafe}, tmp_path / "unsafe.pt")
    with pytest.raises(ValueError, match=r"unsafe\.pt should hold prompts as tensors, .*Unsafe\), which torch.load"):
        read_weights(tmp_path / "unsafe.pt", "prompts")
    assert not Unsafe.ran
    torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1)).save(tmp_path / "program.pt")
    assert is_torchscript(tmp_path / "program.pt")
    with pytest.raises(ValueError, match="TorchScript program"):
        read_weights(tmp_path / "program.pt", "prompts")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(40)])
def test_other_formats_are_refused(tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.pt should hold prompts"):
        read_weights(tmp_path / "bad.pt", "prompts")
    with pytest.raises(FileNotFoundError, match="Expected prompts in a file, found none at"):
        read_weights(tmp_path / "none.pt", "prompts")


@pytest.mark.parametrize(
    "content", [{"a": {"b": [torch.tensor([1.0, float("nan")])]}}, {"a": torch.tensor(-torch.inf)}]
)
def test_values_that_are_not_finite_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt has values that are NaN or infinite in 1 of 1 tensors, 'a"):
        read_weights(tmp_path / "weights.pt", "weights")
    assert read_weights(tmp_path / "weights.pt", "weights", check=False)


def test_the_mask_of_clip_is_infinite(tmp_path):
    torch.save({"attn_mask": torch.full((2, 2), -torch.inf)}, tmp_path / "clip.pt")
    assert read_weights(tmp_path / "clip.pt", "weights")["attn_mask"].isinf().all()


BAD_FILES = {
    "empty": (b"", "is empty"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "page": (b"<!DOCTYPE html>", "web page"),
    "xml": (b"<?xml version='1.0'?><Error/>", "web page"),
    "text": (b"404: Not Found", "is a text file"),
    "truncated": (b"PK\x03\x04" + bytes(40), "is incomplete"),
    "pickle": (b"\x80\x02}q", "incomplete or damaged"),
    "other": (b"\x00\x01\x02\xff", "of another format"),
}


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_the_fault_of_a_file_is_named_without_advice_to_run_it(tmp_path, name, suffix):
    content, reason = BAD_FILES[name]
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad{suffix} should hold prompts") as error:
        read_weights(path, "prompts")
    text = str(error.value)
    known = name in {"empty", "pointer", "page", "xml"} or suffix != ".safetensors"
    assert (reason if known else "incomplete or damaged safetensors file") in text
    assert "weights_only=False" not in text
    assert len(text.splitlines()) == 1


def test_a_safetensors_file_with_another_suffix_is_named(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"is a safetensors file: give its name the suffix \.safetensors"):
        read_weights(tmp_path / "weights.pt", "prompts")


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.xml", b"<?xml version='1.0'?><net/>"), ("model.onnx", b"\x08\x0a"), ("m.bin", bytes(9))],
)
def test_an_exported_model_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} should hold prompts as tensors, but is an exported model"):
        read_weights(tmp_path / name, "prompts")


def test_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="should be a file with prompts, but is a folder"):
        read_weights(tmp_path, "prompts")
