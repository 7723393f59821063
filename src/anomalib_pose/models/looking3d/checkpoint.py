# SPDX-License-Identifier: Apache-2.0
"""Published and converted weights of Looking3D, read without executing code from a file."""

import logging
from pathlib import Path

from torch import Tensor, nn

from anomalib_pose.models.looking3d.decoder import Decoder
from anomalib_pose.models.looking3d.encoder import Encoder, Projector
from anomalib_pose.weights import is_state_dict, mismatched_keys, read_weights, write_weights

logger = logging.getLogger(__name__)

PARTS = ("encoder", "projector", "attention_decoder")
AVERAGES = ("encoder_ema", "projector_ema")
"""Moving averages, needed only for training."""

_UNUSED = (
    "fpn.inner_blocks.0.",
    "fpn.layer_blocks.0.",
    "conv1x1_mask.",
    "q_pos_emb.",
    "kv_spatial_pos_emb.",
    "pose_to_3d_emb.",
    "crossatten.norm.",
)
"""Prefixes of published entries that the published network never reads."""

Weights = dict[str, dict[str, Tensor]]
"""A state dict for each part."""


def used_entries(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the used entries of a published state dict and give them this package's names.

    Unused are the finest level of the feature pyramid, the mask head, three tables of positions and one normalization.
    Old versions of torchvision omit one word in the names of the pyramid's convolutions.

    Args:
        weights: state dict of one part.
    """
    selected = {}
    for name, value in weights.items():
        if name.startswith(_UNUSED):
            continue
        words = name.split(".")
        if words[0] == "fpn" and len(words) == 4:
            words.insert(3, "0")
        selected[".".join(words)] = value
    return selected


def read_checkpoint(path: str | Path) -> Weights:
    """Read the state dicts of encoder, projector and decoder, and of the moving averages if the file has them.

    Args:
        path: the published ``model.pt``, or its conversion by ``anomalib-pose convert-checkpoint``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file does not hold these parts, or holds objects other than tensors.
    """
    content = read_weights(path, "weights of Looking3D")
    has_parts = isinstance(content, dict) and {*PARTS} <= {*content} <= {*PARTS, *AVERAGES}
    if not has_parts or not all(is_state_dict(weights) for weights in content.values()):
        holds = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        msg = (
            f"{path} should hold the state dicts {', '.join(PARTS)} and perhaps {' and '.join(AVERAGES)}, found "
            f"{holds}. Give Looking3D's published model.pt, or its conversion by anomalib-pose convert-checkpoint."
        )
        raise ValueError(msg)
    return {part: used_entries(weights) for part, weights in content.items()}


def load_part(module: nn.Module, weights: dict[str, Tensor], part: str) -> None:
    """Load the weights of one part; every name and shape must fit.

    The linear map of the query's position encodings, which published weights lack, keeps its values.

    Args:
        module: the part.
        weights: state dict of the part.
        part: name of the part, for the message.

    Raises:
        ValueError: if names or shapes differ.
    """
    expected = module.state_dict()
    weights = {name: value for name, value in expected.items() if name.startswith("query_position.")} | weights
    mismatches = mismatched_keys(expected, weights)
    if mismatches:
        msg = (
            f"The weights of Looking3D's {part} do not fit: {len(mismatches)} entries are missing, unknown or of "
            f"another shape, {mismatches[0]!r} first. Check that the file belongs to this network."
        )
        raise ValueError(msg)
    module.load_state_dict(weights)


def modules() -> dict[str, nn.Module]:
    """Create a network of each part, to check weights against."""
    return {
        "encoder": Encoder(),
        "projector": Projector(),
        "attention_decoder": Decoder(),
        "encoder_ema": Encoder(),
        "projector_ema": Projector(),
    }


def convert(source: str | Path, target: str | Path, *, training: bool = False) -> None:
    """Write the part of a published file that inference needs, completely or not at all.

    Args:
        source: the published ``model.pt``.
        target: file to write.
        training: keep the moving averages too, to continue training.

    Raises:
        FileNotFoundError: if the source does not exist.
        ValueError: if the source does not hold the weights of this network, or lacks averages that ``training`` needs.
    """
    weights = read_checkpoint(source)
    missing = [part for part in AVERAGES if part not in weights]
    if training and missing:
        msg = f"{source} should hold {' and '.join(AVERAGES)} to continue training, but {missing[0]} is missing."
        raise ValueError(msg)
    selected = {part: weights[part] for part in (*PARTS, *(AVERAGES if training else ()))}
    for part, module in modules().items():
        if part in selected:
            load_part(module, selected[part], part)
    target = write_weights(target, selected)
    logger.info("Wrote %s: %.1f MB, was %.1f MB.", target, *(Path(p).stat().st_size / 1e6 for p in (target, source)))
