# SPDX-License-Identifier: Apache-2.0
"""Readers of weight files, which run no code from the file, and an atomic writer."""

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
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


def read_weights(path: str | Path, expected: str, *, mmap: bool = False, check: bool = True) -> Any:
    """Read a ``.safetensors`` file, or a file that ``torch.save`` wrote, to tensors on the CPU.

    Args:
        path: file to read.
        expected: description of the expected content, for messages.
        mmap: map the file into memory, so that the numbers of a tensor are read at their first use.
        check: refuse values that are NaN or infinite.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file has neither format, is incomplete, contains more than tensors in dicts and lists, or has
            values that are NaN or infinite.
    """
    path = Path(path)
    if path.is_dir():
        msg = f"{path} should be a file with {expected}, but is a folder: give the file."
        raise FileNotFoundError(msg)
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
            content: Any = load_file(path)
        else:
            mmap = mmap and zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # files of other formats can raise anything
        # torch's own message advises to run the code of the file
        msg = f"{path} should hold {expected} as tensors, but {_unreadable_reason(path, str(error))}."
        raise ValueError(msg) from None
    if check:
        check_finite(dict(_named_tensors(content)), str(path), unset=("attn_mask",))  # the mask of CLIP's text tower
    return content


def _named_tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dicts and lists with their names."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict | list | tuple):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _named_tensors(value, f"{name}.{key}" if name else str(key))


def is_state_dict(content: Any) -> bool:
    """Return whether a value is a dict of tensors by name.

    Args:
        content: any value.
    """
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def _unreadable_reason(path: Path, message: str) -> str:
    """Return why a file cannot be read: a sentence without its subject.

    Args:
        path: file to examine.
        message: message of the library that could not read the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    unsafe = re.search(r"GLOBAL ([\w.]+)", message)
    again = "copy or download it again"
    if size == 0:
        return f"is empty: {again}"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS: fetch the file itself by `git lfs pull`"
    if path.suffix.lower() in {".xml", ".bin", ".onnx"} and not text.startswith((b"<!doctype", b"<html")):
        return "is an exported model: give the file it was exported from"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return f"is a web page, which a failed download leaves: {again}"
    if unsafe is not None:
        return f"holds Python objects ({unsafe[1]}), which torch.load(weights_only=True) never loads"
    if path.suffix == ".safetensors":
        return f"is an incomplete or damaged safetensors file: {again}"
    if start[8:9] == b"{" and 0 < int.from_bytes(start[:8], "little") < size:
        return "is a safetensors file: give its name the suffix .safetensors"
    if start.startswith(b"PK"):
        return f"is {_archive_fault(path)}"
    if start.startswith(b"\x80"):  # a pickle, as torch wrote before version 1.6
        return f"is an incomplete or damaged file, or a pickle that torch did not write: {again}"
    kind = "a text file" if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start) else "of another format"
    return f"is {kind}: give a file that torch.save wrote, or a .safetensors file"


def _archive_fault(path: Path) -> str:
    """Return what is wrong with a file that begins like a zip archive."""
    if not zipfile.is_zipfile(path):
        return "incomplete: copy or download it again"
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            return "a zip archive that torch did not write"
    return "damaged: copy or download it again"


def check_finite(tensors: Mapping[str, Any], source: str, *, unset: Sequence[str] = ()) -> None:
    """Refuse tensors with NaN or infinite values.

    Args:
        tensors: tensors by name; other values are ignored.
        source: subject of the message: a file or a network.
        unset: beginnings or ends of the names of tensors that may hold such values.

    Raises:
        ValueError: if a value is NaN or infinite.
    """
    faulty = [
        name
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)
        and (tensor.is_floating_point() or tensor.is_complex())
        and not name.startswith(tuple(unset))
        and not name.endswith(tuple(unset))
        and not bool(tensor.isfinite().all())
    ]
    if faulty:
        msg = (
            f"{source} has values that are NaN or infinite in {len(faulty)} of {len(tensors)} tensors, {faulty[0]!r} "
            "first, so its results would mean nothing: train again, or give another file."
        )
        raise ValueError(msg)


def read_state_dict(path: str | Path, expected: str, owner: str) -> dict[str, Tensor]:
    """Read the state dict of a file, at the top level or under ``"state_dict"``.

    Args:
        path: file to read.
        expected: description of the expected content, for messages.
        owner: name of the network with this state dict, for messages.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file does not hold a state dict of tensors with finite values.
    """
    weights = read_weights(path, expected)
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not is_state_dict(weights):
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
