# SPDX-License-Identifier: Apache-2.0
"""Feature maps of a frozen timm network."""

import inspect
import logging
from dataclasses import dataclass
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.weights import read_state_dict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkSettings:
    """Arguments of a ``FeatureExtractor``.

    Args:
        backbone: timm name of the network.
        layers: indices of the stages whose feature maps are compared; empty for the stages at half and at three
            quarters of the depth.
        pretrained: take timm's weights if no file is given.
        weights_path: file with the weights; empty for none.
        pad_type: padding of the convolutions; empty for the network's default.
        mean: image normalization, subtracted; None for the network's own value.
        std: image normalization, divisor; None for the network's own value.
    """

    backbone: str
    layers: tuple[int, ...] = (0, 1, 2, 3)
    pretrained: bool = True
    weights_path: str = ""
    pad_type: str = ""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def build(self) -> "FeatureExtractor":
        """Build the network without its weights."""
        return FeatureExtractor(**vars(self))


class FeatureExtractor(nn.Module):
    """Computes feature maps at some stages of a frozen timm network.

    The constructor builds the network without weights. The first call or ``load`` reads them from a file or from timm's
    hub. From then on they are part of the ``state_dict``: a loaded checkpoint needs neither file nor hub.

    The classifier and all stages after the last of ``layers`` are removed. The classifier in a file may have any size.

    Args:
        backbone: timm name of the network.
        layers: indices of timm's stages (``feature_info``) whose output is returned. For ``tf_efficientnet_b4``
            0, 1, 2, 3 are the outputs of blocks 1, 5, 9 and 21, with 24, 32, 56 and 160 channels at strides 2 to 16.
            The stages of a transformer are its blocks. Empty for the blocks at half and at three quarters of
            the depth.
        pretrained: take timm's weights if no file is given.
        weights_path: file with the weights of this timm network (``.safetensors``, or a ``torch.save`` of its state
            dict); None or empty for none.
        pad_type: padding of the convolutions if it differs from timm's default for this network, ``"same"`` for weights
            converted from TensorFlow; empty for the default.
        mean: subtracted from an image in [0, 1]; None for the network's own value.
        std: divides the result; None for the network's own value.

    Raises:
        ValueError: if timm has no such network, or the network has no such stages.
    """

    loaded: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str = "tf_efficientnet_b4.aa_in1k",
        layers: tuple[int, ...] = (0, 1, 2, 3),
        *,
        pretrained: bool = True,
        weights_path: str | None = None,
        pad_type: str = "",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = tuple(layers)
        self.pretrained = pretrained
        self.weights_path = weights_path or None
        self._options: dict[str, Any] = {"pad_type": pad_type} if pad_type else {}
        with torch.random.fork_rng(devices=[]):  # building random weights must not change the global random state
            self.network: Any = self._build()
        config = self.network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(mean or config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std or config["std"]).view(1, 3, 1, 1))
        self.register_buffer("loaded", torch.tensor(data=False))
        self.requires_grad_(requires_grad=False)
        self.eval()

    def _build(self) -> Any:
        if not timm.is_model(self.backbone):
            msg = (
                f"backbone should be the name of a timm network, got {self.backbone!r}; "
                "timm.list_models() lists them. An empty name compares color and structure alone."
            )
            raise ValueError(msg)
        network = self._create(pretrained=False)
        if not hasattr(network, "forward_intermediates"):
            msg = f"backbone should be a timm network with forward_intermediates, {self.backbone!r} has none."
            raise ValueError(msg)
        count = len(network.feature_info)
        self.layers = self.layers or (count // 2, 3 * count // 4)
        if min(self.layers) < 0 or max(self.layers) >= count:
            msg = f"layers should be one or more stages from 0 to {count - 1} of {self.backbone!r}, got {self.layers}."
            raise ValueError(msg)
        network.prune_intermediate_layers(list(self.layers), prune_norm=True, prune_head=True)
        return network

    def _create(self, *, pretrained: bool) -> Any:
        """Build the network; transformers are built for images of any size."""
        options = {"pretrained": pretrained, "num_classes": 0, **self._options}
        family = timm.model_entrypoint(self.backbone).__annotations__.get("return")
        if isinstance(family, type) and "dynamic_img_size" in inspect.signature(family).parameters:
            options["dynamic_img_size"] = True
        return timm.create_model(self.backbone, **options)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each returned feature map."""
        return tuple(int(self.network.feature_info[layer]["reduction"]) for layer in self.layers)

    def train(self, mode: bool = True) -> "FeatureExtractor":  # noqa: ARG002
        """Stay in evaluation mode, because the network is frozen."""
        return super().train(mode=False)

    def load(self) -> None:
        """Read the weights unless they are loaded already.

        Raises:
            FileNotFoundError: if ``weights_path`` does not exist.
            ValueError: if the file does not hold this network's weights.
            RuntimeError: if there is no file and timm's weights cannot be downloaded.
        """
        if bool(self.loaded):
            return
        if self.weights_path is not None:
            weights = read_state_dict(
                self.weights_path, "the backbone's weights, as weights_path,", repr(self.backbone)
            )
        elif self.pretrained:
            weights = self._download()
        else:
            msg = (
                f"No weights for {self.backbone!r}: pretrained is off and no weights_path is given. "
                "Give weights_path, switch pretrained on, or load a checkpoint."
            )
            raise RuntimeError(msg)
        expected = self.network.state_dict()
        mismatches = [
            name for name, value in expected.items() if name not in weights or weights[name].shape != value.shape
        ]
        if mismatches:
            msg = (
                f"{self.weights_path or 'timm'} should hold the weights of {self.backbone!r}, but {len(mismatches)} of "
                f"{len(expected)} are missing or have another shape, the first is {mismatches[0]!r}. "
                "Name the network that the file belongs to."
            )
            raise ValueError(msg)
        self.network.load_state_dict({name: weights[name] for name in expected})
        self.loaded.fill_(value=True)
        logger.info("Loaded %s from %s.", self.backbone, self.weights_path or "timm")

    def _download(self) -> dict[str, Tensor]:
        try:
            network = self._create(pretrained=True)
        except (OSError, RuntimeError) as error:
            msg = (
                f"timm's weights of {self.backbone!r} could not be downloaded ({error}). Give weights_path a file "
                "with them, load a checkpoint, or compare without a network (backbone empty)."
            )
            raise RuntimeError(msg) from error
        return network.state_dict()

    def normalize(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalize an image in [0, 1] with the network's mean and standard deviation."""
        return (image - self.mean) / self.std

    def _resize_to_patches(self, image: Tensor) -> Tensor:
        """Resize an image so that its sides are multiples of a transformer's patch size."""
        patch = getattr(getattr(self.network, "patch_embed", None), "patch_size", (1, 1))
        size = [max(1, round(side / step)) * step for side, step in zip(image.shape[-2:], patch, strict=True)]
        if size == list(image.shape[-2:]):
            return image
        return functional.interpolate(image, size, mode="bilinear")

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Compute feature maps (B, C, H / stride, W / stride), one for each of ``layers``.

        Args:
            image: RGB in [0, 1].
        """
        if not torch.compiler.is_compiling():
            self.load()
        return self.network.forward_intermediates(
            self._resize_to_patches(self.normalize(image)),
            indices=list(self.layers),
            stop_early=True,
            intermediates_only=True,
        )
