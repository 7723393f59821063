# SPDX-License-Identifier: Apache-2.0
"""Files of weights: read without running anything that they may hold, written whole or not at all."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def misfits(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """Names that only one of two state dicts has, or whose shapes differ, in order.

    Args:
        own: state dict of a network.
        weights: that should fit it.
    """
    return sorted(
        name
        for name in {*own, *weights}
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    )


def read_weights(path: str | Path, wanted: str) -> Any:
    """What a ``.safetensors`` file, or one of ``torch.save``, holds, on the CPU.

    Args:
        path: the file.
        wanted: what it should hold, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another format, or holds more than tensors in dicts and lists.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"Expected {wanted} in a file, found none at {path}."
        raise FileNotFoundError(msg)
    if is_torchscript(path):
        msg = (
            f"{path} should hold {wanted} as tensors, but is a TorchScript program, which is not run here. If you "
            "trust it, save its weights yourself: "
            f"torch.save(torch.jit.load({path.name!r}, 'cpu').state_dict(), 'weights.pt')."
        )
        raise ValueError(msg)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the bytes of another file can be read as anything, and raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"{path} should hold {wanted} as tensors, which torch.load(weights_only=True) reads, but: {reason}"
        raise ValueError(msg) from error


def read_state_dict(path: str | Path, wanted: str, owner: str) -> dict[str, Tensor]:
    """The state dict that a file holds, bare or under ``"state_dict"``.

    Args:
        path: the file.
        wanted: what it should hold, for messages.
        owner: whose state dict that is, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    weights = read_weights(path, wanted)
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        msg = f"{path} should hold a state dict of {owner}, found {type(weights).__name__} of something else."
        raise ValueError(msg)
    return dict(weights)


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive that carries code beside its tensors.

    Args:
        path: the file.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def write_weights(path: str | Path, content: dict[str, Any]) -> Path:
    """Write tensors by ``torch.save``; the file is there whole or not at all.

    Args:
        path: file to write; its folder is made.
        content: tensors in dicts and lists.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        torch.save(content, partial)
        os.replace(partial, path)  # noqa: PTH105 - atomic on every platform
    finally:
        partial.unlink(missing_ok=True)
    return path
