# SPDX-License-Identifier: Apache-2.0
"""Published and converted weights of Looking3D, read without running anything that a file may hold."""

import logging
from pathlib import Path

from torch import Tensor, nn

from anomalib_pose.models.looking3d.decoder import Decoder
from anomalib_pose.models.looking3d.encoder import Encoder, Projector
from anomalib_pose.weights import misfits, read_weights, write_weights

logger = logging.getLogger(__name__)

PARTS = ("encoder", "projector", "attention_decoder")
AVERAGES = ("encoder_ema", "projector_ema")
"""Moving averages, which only training needs."""

_NEVER_USED = (
    "fpn.inner_blocks.0.",
    "fpn.layer_blocks.0.",
    "conv1x1_mask.",
    "q_pos_emb.",
    "kv_spatial_pos_emb.",
    "pose_to_3d_emb.",
    "crossatten.norm.",
)

Weights = dict[str, dict[str, Tensor]]
"""A state dict for each part."""


def used(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict by our names, without what the published network holds but never reads.

    These are the finest level of the feature pyramid, the mask head, three tables of positions that were never applied
    and a normalization that is skipped. Old versions of torchvision name the pyramid's convolutions one word shorter.

    Args:
        weights: state dict of one part.
    """
    kept = {}
    for name, value in weights.items():
        if name.startswith(_NEVER_USED):
            continue
        words = name.split(".")
        if words[0] == "fpn" and len(words) == 4:
            words.insert(3, "0")
        kept[".".join(words)] = value
    return kept


def read_checkpoint(path: str | Path) -> Weights:
    """State dicts of the parts: encoder, projector, decoder and, if the file has them, the moving averages.

    Args:
        path: the published ``model.pt``, or what ``anomalib-pose convert-checkpoint`` made of it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold these parts, or more than tensors.
    """
    given = read_weights(path, "weights of Looking3D")
    found = sorted(map(str, given)) if isinstance(given, dict) else type(given).__name__
    if not isinstance(given, dict) or not {*PARTS} <= {*given} <= {*PARTS, *AVERAGES}:
        msg = (
            f"{path} should hold the state dicts {', '.join(PARTS)} and perhaps {' and '.join(AVERAGES)}, found "
            f"{found}: give Looking3D's published model.pt, or what anomalib-pose convert-checkpoint made of it."
        )
        raise ValueError(msg)
    return {part: used(weights) for part, weights in given.items()}


def load_part(module: nn.Module, weights: dict[str, Tensor], part: str) -> None:
    """Fill in one part; every name has to fit.

    A query's positions, which no published weights know, keep what they have.

    Args:
        module: the part.
        weights: its state dict.
        part: its name, for the message.

    Raises:
        ValueError: if names or shapes differ.
    """
    own = module.state_dict()
    weights = {name: value for name, value in own.items() if name.startswith("query_position.")} | weights
    wrong = misfits(own, weights)
    if wrong:
        msg = (
            f"The weights of Looking3D's {part} do not fit: {len(wrong)} entries are missing, unknown or of another "
            f"shape, {wrong[0]!r} first. Is this another network, or another version of it?"
        )
        raise ValueError(msg)
    module.load_state_dict(weights)


def modules() -> dict[str, nn.Module]:
    """A new network of every part, to hold weights against."""
    return {
        "encoder": Encoder(),
        "projector": Projector(),
        "attention_decoder": Decoder(),
        "encoder_ema": Encoder(),
        "projector_ema": Projector(),
    }


def convert(source: str | Path, target: str | Path, *, training: bool = False) -> None:
    """Write what inference needs of a published file; the target is there whole or not at all.

    Args:
        source: the published ``model.pt``.
        target: file to write.
        training: keep the moving averages too, to train on.

    Raises:
        FileNotFoundError: if there is no source.
        ValueError: if the source does not hold the weights of this network, or no averages though they are wanted.
    """
    weights = read_checkpoint(source)
    missing = [part for part in AVERAGES if part not in weights]
    if training and missing:
        msg = f"{source} should hold {' and '.join(AVERAGES)} to train on, but {missing[0]} is missing."
        raise ValueError(msg)
    kept = {part: weights[part] for part in (*PARTS, *(AVERAGES if training else ()))}
    for part, module in modules().items():
        if part in kept:
            load_part(module, kept[part], part)
    target = write_weights(target, kept)
    logger.info("Wrote %s: %.1f MB, was %.1f MB.", target, *(Path(p).stat().st_size / 1e6 for p in (target, source)))
