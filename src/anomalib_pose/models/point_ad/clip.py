# SPDX-License-Identifier: Apache-2.0
"""CLIP's frozen image and text towers, with weights of open_clip or of a file.

Versions 2.24 to 3.x of open_clip are supported. They differ in the order of tokens inside the blocks (see
``attention``), in the configurations that they accept, and in their lists of weights with QuickGELU: 2.24 does not
list OpenAI's weights.
"""

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
from anomalib_pose.weights import mismatched_keys, read_state_dict

logger = logging.getLogger(__name__)

_OPENAI_ENTRIES = ("input_resolution", "context_length", "vocab_size")
"""Numbers beside the weights in OpenAI's files."""


class Clip(nn.Module):
    """Image and text tower of one CLIP, both frozen.

    Args:
        clip: model of open_clip; its parts are shared, not copied.

    Raises:
        ValueError: if a tower is not built like OpenAI's.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.vision = VisionTower(clip.visual)
        self.text = TextTower(clip)
        self.eval().requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "Clip":  # noqa: ARG002 - the signature is torch's
        """Stay in evaluation mode, also when the surrounding model is trained.

        Args:
            mode: not used.
        """
        return super().train(mode=False)


def load_clip(
    model: str = "ViT-L-14-336",
    pretrained: str | Path | None = "openai",
    *,
    quick_gelu: bool | None = None,
    seed: int = 0,
) -> Clip:
    """Load the towers of a CLIP.

    Args:
        model: name of a vision transformer in open_clip, or a ``.json`` file with a configuration in open_clip's form.
        pretrained: tag of open_clip, whose weights are downloaded once; or a file of weights (``.safetensors``, or a
            state dict of ``torch.save``) with open_clip's or OpenAI's names; or None for random weights, for tests.
        quick_gelu: whether the activation is x * sigmoid(1.702 x) instead of GELU, as for all of OpenAI's weights.
            None: true if open_clip lists it for the tag, if the model's name ends in ``-quickgelu``, or if the file is
            OpenAI's.
        seed: seed of the random weights.

    Raises:
        ModuleNotFoundError: if open_clip is not installed.
        FileNotFoundError: if a named file does not exist.
        RuntimeError: if the weights of a tag cannot be downloaded.
        ValueError: if model or tag are unknown, the architecture is not supported, or weights do not fit.
    """
    open_clip = _open_clip()
    name, configuration = _configuration(open_clip, str(model))
    file = _file(pretrained)
    weights = None if file is None else _read(file)
    tag = None if file is not None or not pretrained else _tag(open_clip, name, str(pretrained))
    needs_quick_gelu = _needs_quick_gelu(configuration, weights, tag, str(pretrained))
    if quick_gelu is False and needs_quick_gelu:
        msg = f"The weights {pretrained} need QuickGELU, but quick_gelu is False: leave it unset."
        raise ValueError(msg)
    configuration["quick_gelu"] = needs_quick_gelu or bool(quick_gelu)
    _check_architecture(open_clip, name, configuration)
    if tag is not None:
        logger.info("CLIP %s: open_clip's weights %r, from %s or its cache.", name, pretrained, _origin(tag))
        network = _downloaded(open_clip, name, str(pretrained), tag, quick_gelu=configuration["quick_gelu"])
        return Clip(network.float())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = open_clip.CLIP(**configuration)
    if weights is None:
        logger.warning("CLIP %s has random weights, so its scores mean nothing. Give --model.pretrained.", name)
    else:
        _fill(network, weights, f"{file} (for {name})")
        activation = "QuickGELU" if configuration["quick_gelu"] else "GELU"
        logger.info("CLIP %s: weights from %s, with activation %s.", name, file, activation)
    return Clip(network.float())


def _open_clip() -> ModuleType:
    """Import open_clip, or name the extra to install."""
    try:
        import open_clip
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        msg = 'PointAD\'s CLIP needs open_clip, which is not installed: pip install "anomalib-pose[clip]".'
        raise ModuleNotFoundError(msg, name="open_clip") from error
    return open_clip


def _configuration(open_clip: ModuleType, model: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a model and the arguments of open_clip's ``CLIP``."""
    if model.endswith(".json"):
        name, configuration = Path(model).stem, _read_configuration(Path(model))
    else:
        name = model.replace("/", "-")
        if name not in open_clip.list_models():
            similar = ", ".join(difflib.get_close_matches(name, open_clip.list_models(), 5, 0.5)) or "ViT-L-14-336"
            msg = f"Expected the name of a model of open_clip, got {model!r}. Similar names: {similar}."
            raise ValueError(msg)
        configuration = open_clip.get_model_config(name)
    text, vision = configuration["text_cfg"], configuration["vision_cfg"]
    foreign = [key for key in ("timm_model_name", "hf_model_name", "hf_tokenizer_name") if key in {**vision, **text}]
    if foreign or configuration.get("custom_text") or isinstance(vision.get("layers"), list):
        msg = f"PointAD needs a CLIP of vision and text transformers built like OpenAI's, but {model} is not."
        raise ValueError(msg)
    return name, configuration


def _read_configuration(path: Path) -> dict[str, Any]:
    """Read a .json file in the form of open_clip's configurations."""
    if not path.is_file():
        msg = f"Expected a configuration of CLIP, found no file {path}."
        raise FileNotFoundError(msg)
    try:
        configuration = json.loads(path.read_text())
    except ValueError as error:
        msg = f"{path} should be JSON, but: {error}."
        raise ValueError(msg) from error
    if not isinstance(configuration, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= {*configuration}:
        msg = f"{path} should hold embed_dim, vision_cfg and text_cfg, as the configurations of open_clip do."
        raise ValueError(msg)
    return configuration


def _check_architecture(open_clip: ModuleType, name: str, configuration: dict[str, Any]) -> None:
    """Refuse an unsupported architecture before any download, by a model without memory for its weights."""
    with torch.device("meta"):
        try:
            network = open_clip.CLIP(**configuration)
        except TypeError as error:
            msg = f"The installed open_clip does not accept the configuration of {name}: {error}."
            raise ValueError(msg) from error
        Clip(network)


def _downloaded(
    open_clip: ModuleType, name: str, pretrained: str, tag: dict[str, Any], *, quick_gelu: bool
) -> nn.Module:
    """Create a model with the weights of a tag, from open_clip's cache or the network."""
    try:
        network: nn.Module = open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=quick_gelu)
    except (OSError, RuntimeError) as error:
        msg = (
            f"open_clip's weights {pretrained!r} of {name} could not be downloaded from {_origin(tag)} ({error}). "
            "Download them on a machine with a network, and give the file: --model.pretrained FILE."
        )
        raise RuntimeError(msg) from error
    return network


def _file(pretrained: str | Path | None) -> Path | None:
    """Return the file that ``pretrained`` names; None if it is a tag or empty."""
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
    """Return open_clip's entry for a tag."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        choices = ", ".join(tags) or "no tags"
        msg = f"pretrained should be a file of weights or a tag of {name} ({choices}), got {pretrained!r}."
        raise ValueError(msg)
    return open_clip.get_pretrained_cfg(name, pretrained)


def _origin(tag: dict[str, Any]) -> str:
    """Name the place that a tag's weights are downloaded from."""
    return f"the Hugging Face Hub ({tag['hf_hub']})" if tag.get("hf_hub") else tag.get("url", "open_clip")


def _needs_quick_gelu(
    configuration: dict[str, Any], weights: dict[str, Tensor] | None, tag: dict[str, Any] | None, pretrained: str
) -> bool:
    """Return whether model name, tag or file require QuickGELU."""
    # open_clip 2.24 applies QuickGELU to OpenAI's weights, but does not list it
    by_tag = tag is not None and (tag.get("quick_gelu", False) or pretrained == "openai")
    by_file = weights is not None and any(name in weights for name in _OPENAI_ENTRIES)
    return bool(configuration.get("quick_gelu") or by_tag or by_file)


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict with open_clip's or OpenAI's names."""
    weights = read_state_dict(path, "weights of CLIP", "CLIP")
    return {name.removeprefix("module."): value for name, value in weights.items()}


def _fill(clip: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load every weight. Scale and bias of the logits, which PointAD does not use, may be missing."""

    def without_logits(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: value
            for name, value in state.items()
            if name not in _OPENAI_ENTRIES and not name.startswith("logit_")
        }

    expected, weights = without_logits(clip.state_dict()), without_logits(weights)
    mismatches = mismatched_keys(expected, weights)
    if mismatches:
        msg = (
            f"The weights in {source} do not fit: {len(mismatches)} of {len(expected)} entries are missing, unknown or "
            f"of another shape, {mismatches[0]!r} first. Check that the file belongs to this model and has "
            "open_clip's names."
        )
        raise ValueError(msg)
    clip.load_state_dict(weights, strict=False)
