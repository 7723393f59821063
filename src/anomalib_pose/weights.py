# SPDX-License-Identifier: Apache-2.0
"""Readers of weight files, which run no code from the file, and an atomic writer."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from anomalib_pose.storage import written_whole


def mismatched_keys(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """List the names that only one of two state dicts has, or whose shapes differ, in alphabetical order.

    Args:
        own: state dict of a network.
        weights: state dict to be loaded into it.
    """
    return sorted(
        name
        for name in {*own, *weights}
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    )


def read_weights(path: str | Path, expected: str) -> Any:
    """Read a ``.safetensors`` file, or a file that ``torch.save`` wrote, to tensors on the CPU.

    Args:
        path: file to read.
        expected: description of the expected content, for messages.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file has neither format, or contains more than tensors in dicts and lists.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"Expected {expected} in a file, found none at {path}."
        raise FileNotFoundError(msg)
    if is_torchscript(path):
        msg = (
            f"{path} should hold {expected} as tensors, but is a TorchScript program, which is never run. If you "
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
    except Exception as error:  # files of other formats can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"{path} should hold {expected} as tensors, which torch.load(weights_only=True) reads, but: {reason}"
        raise ValueError(msg) from error


def read_state_dict(path: str | Path, expected: str, owner: str) -> dict[str, Tensor]:
    """Read the state dict of a file, at the top level or under ``"state_dict"``.

    Args:
        path: file to read.
        expected: description of the expected content, for messages.
        owner: name of the network with this state dict, for messages.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file does not hold a state dict of tensors.
    """
    weights = read_weights(path, expected)
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        msg = f"{path} should hold a state dict of {owner}, found a {type(weights).__name__} with other content."
        raise ValueError(msg)
    return dict(weights)


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, which holds code beside tensors.

    Args:
        path: file to examine.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def write_weights(path: str | Path, content: dict[str, Any]) -> Path:
    """Write tensors with ``torch.save``; the file appears only when it is complete.

    Args:
        path: file to write; its folder is created.
        content: tensors in dicts and lists.
    """
    path = Path(path)
    with written_whole(path) as partial:
        torch.save(content, partial)
    return path
