# SPDX-License-Identifier: Apache-2.0
"""Files of learned prompts: the published ones, and this package's own, a hundredth of their size."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.text import TextTower, end_positions
from anomalib_pose.weights import is_state_dict, mismatched_keys, read_weights, write_weights

logger = logging.getLogger(__name__)

_OWN = "point_ad_prompts"
_PUBLISHED = "prompt_learner"
_START = 49406
"""Id of the start token."""


class Prompts(NamedTuple):
    """Learned tokens of one file.

    Args:
        normal: learned embeddings of the normal text (n, w).
        abnormal: learned embeddings of the abnormal text (n, w).
        deep: learned tokens inside the text tower (k, m, w).
        start: embedding of the start token (w,), which identifies the CLIP that the prompts were learned for.
    """

    normal: Tensor
    abnormal: Tensor
    deep: Tensor
    start: Tensor


def read_prompts(path: str | Path) -> Prompts:
    """Read the prompts of a file.

    Args:
        path: a published ``epoch_<n>.pth``, or a file of ``write_prompts`` or ``convert``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file does not hold such prompts.
    """
    content = read_weights(path, "prompts of PointAD")
    if isinstance(content, dict) and {*content} == {_OWN} and is_state_dict(content[_OWN]):
        weights = content[_OWN]
        wrong = sorted({*weights} ^ {*Prompts._fields})
        if wrong:
            msg = f"{path} should hold {', '.join(Prompts._fields)}; {', '.join(wrong)} is missing or unknown."
            raise ValueError(msg)
        prompts = Prompts(**weights)
    elif isinstance(content, dict) and {*content} == {_PUBLISHED} and is_state_dict(content[_PUBLISHED]):
        prompts = _from_published(content[_PUBLISHED], path)
    else:
        holds = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        msg = f"{path} should hold {_PUBLISHED!r}, as PointAD's epoch_15.pth does, or {_OWN!r}, but holds {holds}."
        raise ValueError(msg)
    _check_shapes(prompts, path)
    return prompts


def write_prompts(path: str | Path, learner: PromptLearner, text: TextTower) -> Path:
    """Write learned prompts, completely or not at all.

    Args:
        path: file to write.
        learner: holds the prompts.
        text: text tower that the prompts were learned for.
    """
    return _write(path, prompts_of(learner, text))


def prompts_of(learner: PromptLearner, text: TextTower) -> Prompts:
    """Copy the prompts of a learner to the CPU.

    Args:
        learner: holds the prompts.
        text: text tower that the prompts were learned for.
    """
    start = text.embed(learner.ids[0, :1])[0]
    parts = (learner.normal, learner.abnormal, learner.deep, start)
    return Prompts(*(part.detach().cpu().clone() for part in parts))


def load_prompts(learner: PromptLearner, prompts: Prompts, text: TextTower) -> None:
    """Load learned prompts into a learner.

    Args:
        learner: learner that is changed in place.
        prompts: prompts of a file or a checkpoint.
        text: text tower that the learner is for.

    Raises:
        ValueError: if numbers of tokens or widths differ, or if the prompts were learned for another CLIP.
    """
    weights = {name: value for name, value in prompts._asdict().items() if name != "start"}
    if mismatched_keys(learner.state_dict(), weights):
        model_shapes = {name: tuple(value.shape) for name, value in learner.state_dict().items()}
        prompt_shapes = {name: tuple(value.shape) for name, value in weights.items()}
        msg = (
            f"The prompts have the shapes {prompt_shapes}, but this model has {model_shapes}. Choose the CLIP and the "
            "sizes that the prompts were learned with."
        )
        raise ValueError(msg)
    start = text.embed(learner.ids[0, :1])[0].cpu()
    if torch.linalg.vector_norm(start - prompts.start) > 0.01 * torch.linalg.vector_norm(start):
        msg = (
            "These prompts were learned for another CLIP: their start token differs from that of this model. Choose "
            "their CLIP by --model.clip_model and --model.pretrained."
        )
        raise ValueError(msg)
    learner.load_state_dict(weights)


def convert(source: str | Path, target: str | Path) -> None:
    """Write the part of a published file that inference needs.

    Args:
        source: a published ``epoch_<n>.pth``.
        target: file to write.

    Raises:
        FileNotFoundError: if the source does not exist.
        ValueError: if the source does not hold such prompts.
    """
    target = _write(target, read_prompts(source))
    logger.info("Wrote %s: %.2f MB, was %.2f MB.", target, *(Path(p).stat().st_size / 1e6 for p in (target, source)))


def _write(path: str | Path, prompts: Prompts) -> Path:
    """Write prompts in this package's own format."""
    return write_weights(path, {_OWN: {name: part.detach().clone() for name, part in prompts._asdict().items()}})


def _from_published(weights: dict[str, Tensor], path: str | Path) -> Prompts:
    """Select the used entries of a published state dict; all other entries must be known as unused."""
    sets = sum(name.startswith("compound_prompts_text.") for name in weights)
    deep = [f"compound_prompts_text.{number}" for number in range(sets)]
    kinds = ("pos", "neg")
    needed = {*deep, *(f"{part}_{kind}" for part in ("ctx", "token_prefix", "tokenized_prompts") for kind in kinds)}
    unused = {f"token_suffix_{kind}" for kind in kinds} | {
        name for name in weights if name.startswith("compound_prompt_projections.")
    }
    wrong = sorted((needed - {*weights}) | ({*weights} - needed - unused))
    if wrong or not sets:
        first = wrong[0] if wrong else "compound_prompts_text.0"
        msg = f"{path} should hold the prompt learner of PointAD, but {first!r} is missing or unknown."
        raise ValueError(msg)
    normal, abnormal = (weights[f"ctx_{kind}"].flatten(0, -2) for kind in kinds)
    for kind, extra in (("pos", 3), ("neg", 4)):
        ids = weights[f"tokenized_prompts_{kind}"].flatten()
        if ids[0] != _START or int(end_positions(ids)) != len(normal) + extra:
            msg = f"{path} should have texts that end in 'object.' and 'damaged object.', but those of {kind} do not."
            raise ValueError(msg)
    logger.info("%s: %d entries are used, %d are never read.", path, len(needed), len({*weights} & unused))
    shapes = {tuple(weights[name].shape) for name in deep}
    if len(shapes) != 1:
        msg = f"{path} should have as many learned tokens for every text block, got {sorted(shapes)}."
        raise ValueError(msg)
    start = weights["token_prefix_pos"].flatten()
    return Prompts(normal, abnormal, torch.stack([weights[name] for name in deep]), start)


def _check_shapes(prompts: Prompts, path: str | Path) -> None:
    """Raise unless all parts have one width and both texts one length."""
    width = prompts.start.shape[-1]
    dimensions = [part.ndim for part in prompts]
    if dimensions != [2, 2, 3, 1] or prompts.normal.shape != prompts.abnormal.shape:
        msg = f"{path} should hold two texts (n, w) and deep tokens (k, m, w), got {[tuple(p.shape) for p in prompts]}."
        raise ValueError(msg)
    if any(part.shape[-1] != width for part in prompts) or not all(part.is_floating_point() for part in prompts):
        msg = f"{path} should hold numbers of one width, got {[(tuple(p.shape), p.dtype) for p in prompts]}."
        raise ValueError(msg)
