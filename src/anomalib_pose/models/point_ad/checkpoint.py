# SPDX-License-Identifier: Apache-2.0
"""Learned prompts in files: those that the paper's authors publish, and our own, a hundredth of their size."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.text import TextTower, ends
from anomalib_pose.weights import misfits, read_weights, write_weights

logger = logging.getLogger(__name__)

_OWN = "point_ad_prompts"
_PUBLISHED = "prompt_learner"
_START = 49406


class Prompts(NamedTuple):
    """Learned tokens of one file.

    Args:
        normal: of the normal text (n, w).
        abnormal: of the abnormal text (n, w).
        deep: that blocks of the text tower read (k, m, w).
        start: embedding of the start token (w,), by which the CLIP is known again that they were learned for.
    """

    normal: Tensor
    abnormal: Tensor
    deep: Tensor
    start: Tensor


def read_prompts(path: str | Path) -> Prompts:
    """Prompts of a file.

    Args:
        path: a published ``epoch_<n>.pth``, or what ``write_prompts`` or ``anomalib-pose convert-checkpoint`` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold such prompts.
    """
    given = read_weights(path, "prompts of PointAD")
    if isinstance(given, dict) and {*given} == {_OWN} and isinstance(given[_OWN], dict):
        weights = given[_OWN]
        wrong = sorted({*weights} ^ {*Prompts._fields})
        if wrong:
            msg = f"{path} should hold {', '.join(Prompts._fields)}; {', '.join(wrong)} is missing or unknown."
            raise ValueError(msg)
        found = Prompts(**weights)
    elif isinstance(given, dict) and {*given} == {_PUBLISHED} and isinstance(given[_PUBLISHED], dict):
        found = _published(given[_PUBLISHED], path)
    else:
        holds = sorted(map(str, given)) if isinstance(given, dict) else type(given).__name__
        msg = f"{path} should hold {_PUBLISHED!r}, as PointAD's epoch_15.pth does, or {_OWN!r}, but holds {holds}."
        raise ValueError(msg)
    _check_shapes(found, path)
    return found


def write_prompts(path: str | Path, learner: PromptLearner, text: TextTower) -> Path:
    """Write learned prompts; the file is there whole or not at all.

    Args:
        path: file to write.
        learner: the prompts.
        text: tower that they were learned for.
    """
    return _write(path, prompts_of(learner, text))


def prompts_of(learner: PromptLearner, text: TextTower) -> Prompts:
    """What a learner holds, on the CPU.

    Args:
        learner: the prompts.
        text: tower that they were learned for.
    """
    start = text.embed(learner.ids[0, :1])[0]
    parts = (learner.normal, learner.abnormal, learner.deep, start)
    return Prompts(*(part.detach().cpu().clone() for part in parts))


def load_prompts(learner: PromptLearner, prompts: Prompts, text: TextTower) -> None:
    """Fill in learned prompts.

    Args:
        learner: to fill in.
        prompts: of a file.
        text: tower that the learner is for.

    Raises:
        ValueError: if numbers of tokens or widths differ, or if the prompts were learned for another CLIP.
    """
    given = {name: value for name, value in prompts._asdict().items() if name != "start"}
    wrong = misfits(learner.state_dict(), given)
    if wrong:
        own = {name: tuple(value.shape) for name, value in learner.state_dict().items()}
        shapes = {name: tuple(value.shape) for name, value in given.items()}
        msg = f"The prompts' shapes are {shapes}, those of this model {own}: is it for another CLIP or other sizes?"
        raise ValueError(msg)
    start = text.embed(learner.ids[0, :1])[0].cpu()
    if torch.linalg.vector_norm(start - prompts.start) > 0.01 * torch.linalg.vector_norm(start):
        msg = "These prompts were learned for another CLIP: their start token differs from this one's."
        raise ValueError(msg)
    learner.load_state_dict(given)


def convert(source: str | Path, target: str | Path) -> None:
    """Write what inference needs of a published file.

    Args:
        source: a published ``epoch_<n>.pth``.
        target: file to write.

    Raises:
        FileNotFoundError: if there is no source.
        ValueError: if it does not hold such prompts.
    """
    target = _write(target, read_prompts(source))
    logger.info("Wrote %s: %.2f MB, was %.2f MB.", target, *(Path(p).stat().st_size / 1e6 for p in (target, source)))


def _write(path: str | Path, prompts: Prompts) -> Path:
    """Write prompts in our own format."""
    return write_weights(path, {_OWN: {name: part.detach().clone() for name, part in prompts._asdict().items()}})


def _published(weights: dict[str, Tensor], path: str | Path) -> Prompts:
    """What is used of a published state dict; every other entry has to be one of those known never to be read."""
    sets = sum(name.startswith("compound_prompts_text.") for name in weights)
    deep = [f"compound_prompts_text.{number}" for number in range(sets)]
    kinds = ("pos", "neg")
    needed = {*deep, *(f"{part}_{kind}" for part in ("ctx", "token_prefix", "tokenized_prompts") for kind in kinds)}
    idle = {f"token_suffix_{kind}" for kind in kinds} | {
        name for name in weights if name.startswith("compound_prompt_projections.")
    }
    wrong = sorted((needed - {*weights}) | ({*weights} - needed - idle))
    if wrong or not sets:
        first = wrong[0] if wrong else "compound_prompts_text.0"
        msg = f"{path} should hold the prompt learner of PointAD, but {first!r} is missing or unknown to it."
        raise ValueError(msg)
    normal, abnormal = (weights[f"ctx_{kind}"].flatten(0, -2) for kind in kinds)
    for kind, extra in (("pos", 3), ("neg", 4)):
        ids = weights[f"tokenized_prompts_{kind}"].flatten()
        if ids[0] != _START or int(ends(ids)) != len(normal) + extra:
            msg = f"{path} should have texts that end in 'object.' and 'damaged object.', but those of {kind} do not."
            raise ValueError(msg)
    logger.info("%s: %d entries are used, %d are never read.", path, len(needed), len({*weights} & idle))
    shapes = {tuple(weights[name].shape) for name in deep}
    if len(shapes) != 1:
        msg = f"{path} should have as many learned tokens for every text block, got {sorted(shapes)}."
        raise ValueError(msg)
    start = weights["token_prefix_pos"].flatten()
    return Prompts(normal, abnormal, torch.stack([weights[name] for name in deep]), start)


def _check_shapes(prompts: Prompts, path: str | Path) -> None:
    """Raise unless all parts are of one width and the two texts of one length."""
    width = prompts.start.shape[-1]
    dimensions = [part.ndim for part in prompts]
    if dimensions != [2, 2, 3, 1] or prompts.normal.shape != prompts.abnormal.shape:
        msg = f"{path} should hold two texts (n, w) and deep tokens (k, m, w), got {[tuple(p.shape) for p in prompts]}."
        raise ValueError(msg)
    if any(part.shape[-1] != width for part in prompts) or not all(part.is_floating_point() for part in prompts):
        msg = f"{path} should hold numbers of one width, got {[(tuple(p.shape), p.dtype) for p in prompts]}."
        raise ValueError(msg)
