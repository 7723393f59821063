# SPDX-License-Identifier: Apache-2.0
"""CLIP's two towers, frozen, from open_clip or a file."""

import difflib
import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from anomalib_pose.models.point_ad.text import TextTower
from anomalib_pose.models.point_ad.vision import VisionTower
from anomalib_pose.weights import misfits, read_state_dict

logger = logging.getLogger(__name__)

_OPENAI_ENTRIES = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's files hold beside the weights."""


class Clip(nn.Module):
    """Image and text tower of one CLIP; nothing of it is trained.

    Args:
        clip: model of open_clip; its parts are used, not copied.

    Raises:
        ValueError: if a tower is not built like OpenAI's.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.vision = VisionTower(clip.visual)
        self.text = TextTower(clip)
        self.eval().requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "Clip":  # noqa: ARG002 - the signature is torch's
        """Stay frozen, whatever the model around it does.

        Args:
            mode: is not used.
        """
        return super().train(mode=False)


def load_clip(
    model: str = "ViT-L-14-336",
    pretrained: str | Path | None = "openai",
    *,
    quick_gelu: bool | None = None,
    seed: int = 0,
) -> Clip:
    """Towers of a CLIP.

    Args:
        model: name of a vision transformer in open_clip, or a ``.json`` file with a configuration like open_clip's.
        pretrained: tag of open_clip, whose weights are downloaded unless they were before; or a file of weights
            (``.safetensors``, or a state dict of ``torch.save``) with open_clip's or OpenAI's names; or None for random
            weights, which only tests can use.
        quick_gelu: whether the weights need x * sigmoid(1.702 x) in place of GELU, as all of OpenAI's do. None: as
            open_clip knows of the tag, as the model's name says (``-quickgelu``), or if the file is OpenAI's.
        seed: of the random weights.

    Raises:
        ModuleNotFoundError: if open_clip is not installed.
        FileNotFoundError: if a file is named that is not there.
        RuntimeError: if the weights of a tag cannot be downloaded.
        ValueError: if model or tag are not known, the model is built in another way, or weights do not fit.
    """
    open_clip = _open_clip()
    name, configuration = _configuration(open_clip, str(model))
    file = _file(pretrained)
    weights = None if file is None else _read(file)
    tag = None if file is not None or not pretrained else _tag(open_clip, name, str(pretrained))
    needs = _needs_quick_gelu(configuration, weights, tag, str(pretrained))
    if quick_gelu is False and needs:
        msg = f"The weights {pretrained} need QuickGELU, but quick_gelu is False: leave it unset."
        raise ValueError(msg)
    configuration["quick_gelu"] = needs or bool(quick_gelu)
    _check(open_clip, name, configuration)
    if tag is not None:
        logger.info("CLIP %s: open_clip's weights %r, from %s or its cache.", name, pretrained, _origin(tag))
        built = _downloaded(open_clip, name, str(pretrained), tag, quick_gelu=configuration["quick_gelu"])
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = open_clip.CLIP(**configuration)
        if weights is None:
            logger.warning("CLIP %s has random weights: its scores mean nothing. Give pretrained.", name)
        else:
            _fill(built, weights, f"{file} (for {name})")
            activation = "QuickGELU" if configuration["quick_gelu"] else "GELU"
            logger.info("CLIP %s: weights from %s, used with %s.", name, file, activation)
    return Clip(built.float())


def _open_clip() -> ModuleType:
    """The package, or what to install."""
    try:
        import open_clip
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        msg = "PointAD's CLIP needs open_clip, which is not installed: pip install anomalib-pose[clip]."
        raise ModuleNotFoundError(msg, name="open_clip") from error
    return open_clip


def _configuration(open_clip: ModuleType, model: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of open_clip's ``CLIP``."""
    if model.endswith(".json"):
        if not Path(model).is_file():
            msg = f"Expected a configuration of CLIP, found no file {model}."
            raise FileNotFoundError(msg)
        try:
            found = json.loads(Path(model).read_text())
        except ValueError as error:
            msg = f"{model} should be JSON, but: {error}."
            raise ValueError(msg) from error
        if not isinstance(found, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= {*found}:
            msg = f"{model} should hold embed_dim, vision_cfg and text_cfg, as the configurations of open_clip do."
            raise ValueError(msg)
        name, configuration = Path(model).stem, found
    else:
        name = model.replace("/", "-")
        if name not in open_clip.list_models():
            similar = ", ".join(difflib.get_close_matches(name, open_clip.list_models(), 5, 0.5)) or "ViT-L-14-336"
            msg = f"Expected the name of a model of open_clip, got {model!r}. Similar names: {similar}."
            raise ValueError(msg)
        configuration = open_clip.get_model_config(name)
    text, vision = configuration["text_cfg"], configuration["vision_cfg"]
    other = [key for key in ("timm_model_name", "hf_model_name", "hf_tokenizer_name") if key in {**vision, **text}]
    if other or configuration.get("custom_text") or isinstance(vision.get("layers"), list):
        msg = f"PointAD needs a CLIP of vision and text transformers built like OpenAI's, which {model} is not."
        raise ValueError(msg)
    return name, configuration


def _check(open_clip: ModuleType, name: str, configuration: dict[str, Any]) -> None:
    """Refuse models of another kind before anything is downloaded."""
    with torch.device("meta"):
        try:
            clip = open_clip.CLIP(**configuration)
        except TypeError as error:
            msg = f"The configuration of {name} is not one that the installed open_clip knows: {error}."
            raise ValueError(msg) from error
        Clip(clip)


def _downloaded(
    open_clip: ModuleType, name: str, pretrained: str, tag: dict[str, Any], *, quick_gelu: bool
) -> nn.Module:
    try:
        built: nn.Module = open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=quick_gelu)
    except (OSError, RuntimeError) as error:
        msg = (
            f"open_clip's weights {pretrained!r} of {name} could not be had from {_origin(tag)} ({error}). Download "
            "them where there is a network, and give pretrained the file (--model.pretrained FILE)."
        )
        raise RuntimeError(msg) from error
    return built


def _file(pretrained: str | Path | None) -> Path | None:
    """The file that ``pretrained`` names, if it names one and not a tag."""
    if not pretrained:
        return None
    path = Path(pretrained)
    if path.is_file():
        return path
    if path.suffix in {".pt", ".pth", ".bin", ".safetensors"} or len(path.parts) > 1:
        msg = f"Expected weights of CLIP in a file, found none at {path}."
        raise FileNotFoundError(msg)
    return None


def _tag(open_clip: ModuleType, name: str, pretrained: str) -> dict[str, Any]:
    """What open_clip knows about a tag."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        known = ", ".join(tags) or "no tags"
        msg = f"pretrained should be a file of weights or a tag of {name} ({known}), got {pretrained!r}."
        raise ValueError(msg)
    return open_clip.get_pretrained_cfg(name, pretrained)


def _origin(tag: dict[str, Any]) -> str:
    """Where a tag's weights lie."""
    return f"the Hugging Face Hub ({tag['hf_hub']})" if tag.get("hf_hub") else tag.get("url", "open_clip")


def _needs_quick_gelu(
    configuration: dict[str, Any], weights: dict[str, Tensor] | None, tag: dict[str, Any] | None, pretrained: str
) -> bool:
    """Whether what is known of model and weights says QuickGELU."""
    # older versions of open_clip know it of OpenAI's weights without saying so
    by_tag = tag is not None and (tag.get("quick_gelu", False) or pretrained == "openai")
    by_file = weights is not None and any(name in weights for name in _OPENAI_ENTRIES)
    return bool(configuration.get("quick_gelu") or by_tag or by_file)


def _read(path: Path) -> dict[str, Tensor]:
    """State dict of a file, by open_clip's or OpenAI's names."""
    found = read_state_dict(path, "weights of CLIP", "CLIP")
    return {name.removeprefix("module."): value for name, value in found.items()}


def _fill(clip: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Fill in every weight; scale and bias of the logits, which nothing here reads, may be missing."""

    def read(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: value
            for name, value in state.items()
            if name not in _OPENAI_ENTRIES and not name.startswith("logit_")
        }

    own, given = read(clip.state_dict()), read(weights)
    wrong = misfits(own, given)
    if wrong:
        msg = (
            f"The weights in {source} do not fit: {len(wrong)} of {len(own)} entries are missing, unknown or of "
            f"another shape, {wrong[0]!r} first. Is it another model, or one with other names?"
        )
        raise ValueError(msg)
    clip.load_state_dict(given, strict=False)
