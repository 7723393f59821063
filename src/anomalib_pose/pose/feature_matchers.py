# SPDX-License-Identifier: Apache-2.0
"""kornia's networks as matchers, with weights from a file."""

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.pose.matching import Matcher
from anomalib_pose.weights import read_state_dict

logger = logging.getLogger(__name__)

_KEYPOINTS = 1024

MatcherName = Literal["", "aliked", "xfeat", "loftr"]
"""Names of ``make_matcher``; the empty one stands for no feature matching."""


class NetworkMatcher(ABC):
    """A network of kornia, built and filled when it is first used, and no part of a model's state.

    Args:
        weights: file of its state dict.
    """

    name: ClassVar[str]
    class_name: ClassVar[str]
    not_in_files: ClassVar[tuple[str, ...]] = ()
    """Beginnings of names that published files lack, because they are not needed or computed."""

    def __init__(self, weights: str | Path) -> None:
        self.weights = Path(weights)
        self._network: nn.Module | None = None

    @abstractmethod
    def build(self, network: type) -> nn.Module:
        """The network with random weights.

        Args:
            network: kornia's class.
        """

    @abstractmethod
    def match(self, network: Any, image: Tensor, views: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Matches of an image with each view; see ``Matcher``.

        Args:
            network: with its weights, on the images' device.
            image: RGB (3, H, W) in [0, 1].
            views: RGB (V, 3, H, W) in [0, 1].
        """

    def load(self) -> None:
        """Read the weights, once; see ``Matcher``."""
        self._loaded()

    def _loaded(self) -> nn.Module:
        if self._network is None:
            weights = read_state_dict(self.weights, f"the weights of {self.name!r} as matcher_weights", repr(self.name))
            with torch.random.fork_rng(devices=[]):  # random weights that are replaced should not move the seed
                network = self.build(_kornia_class(self.class_name))
            self._fill(network, weights)
            self._network = network.eval()
            logger.info("Loaded %s from %s.", self.name, self.weights)
        return self._network

    def _fill(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        try:
            result = network.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # other shapes
            raise ValueError(self._misfit(str(error).splitlines()[-1].strip())) from error
        wrong = [name for name in result.missing_keys if not name.startswith(self.not_in_files)]
        if wrong or result.unexpected_keys:
            reason = f"{len(wrong)} entries are missing and {len(result.unexpected_keys)} unknown"
            raise ValueError(self._misfit(f"{reason}, {[*wrong, *result.unexpected_keys][0]!r} first"))

    def _misfit(self, reason: str) -> str:
        return f"{self.weights} should hold weights of {self.name!r}, but they do not fit: {reason}"

    @torch.no_grad()
    def __call__(
        self, image: Float[Tensor, "3 h w"], views: Float[Tensor, "v 3 h w"]
    ) -> list[tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]]:
        """Matching pixel coordinates in the image and in each view; see ``Matcher``."""
        return self.match(self._loaded().to(image.device), image, views)


class AlikedMatcher(NetworkMatcher):
    """ALIKED (Zhao et al. 2023), mutual nearest neighbors of its descriptors.

    Args:
        weights: file of ``aliked-n16``.
    """

    name = "aliked"
    class_name = "ALIKED"
    not_in_files = ("dkd.hw_grid",)

    def build(self, network: type) -> nn.Module:
        """The network; see ``NetworkMatcher``."""
        # the strongest points, however weak: the objects have little texture
        return network("aliked-n16", max_num_keypoints=_KEYPOINTS, detection_threshold=0.0)

    def match(self, network: Any, image: Tensor, views: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Matches of an image with each view; see ``NetworkMatcher``."""
        own, *others = [
            (found.keypoints + 0.5, found.descriptors) for found in network(torch.cat([image[None], views]))
        ]
        return [_mutual(own, other) for other in others]


class XFeatMatcher(NetworkMatcher):
    """XFeat (Potje et al. 2024), sparse: mutual nearest neighbors of its descriptors.

    Args:
        weights: file of XFeat, with or without its fine matcher, which is not used.
    """

    name = "xfeat"
    class_name = "XFeat"
    not_in_files = ("net.fine_matcher.",)

    def build(self, network: type) -> nn.Module:
        """The network; see ``NetworkMatcher``."""
        return network(top_k=_KEYPOINTS, detection_threshold=0.0)

    def _fill(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        # files hold the network without the detector around it
        super()._fill(network, {f"net.{name.removeprefix('net.')}": value for name, value in weights.items()})

    def match(self, network: Any, image: Tensor, views: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Matches of an image with each view; see ``NetworkMatcher``."""
        # XFeat shrinks images to multiples of 32 and gives the corner of the small image's pixel
        half = image.new_tensor([0.5 * size / max(32, size // 32 * 32) for size in (image.shape[-1], image.shape[-2])])
        described = network.detectAndCompute(torch.cat([image[None], views]))
        own, *others = [(one["keypoints"].clone() + half, one["descriptors"].clone()) for one in described]
        return [_mutual(own, other) for other in others]


class LoftrMatcher(NetworkMatcher):
    """LoFTR (Sun et al. 2021): matches of gray images without key points.

    Args:
        weights: file of the outdoor or the indoor weights.
    """

    name = "loftr"
    class_name = "LoFTR"
    not_in_files = ("pos_encoding.",)

    def build(self, network: type) -> nn.Module:
        """The network; see ``NetworkMatcher``."""
        return network(pretrained=None)

    def match(self, network: Any, image: Tensor, views: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Matches of an image with each view; see ``NetworkMatcher``."""
        features = network.extract_features(image.mean(0)[None, None])
        found = [network({"features0": features, "image1": view.mean(0)[None, None]}) for view in views]
        # unlike kornia's other networks its pixels' centers are at halves
        return [(one["keypoints0"], one["keypoints1"]) for one in found]


_MATCHERS: dict[str, type[NetworkMatcher]] = {
    matcher.name: matcher for matcher in (AlikedMatcher, XFeatMatcher, LoftrMatcher)
}


def make_matcher(name: MatcherName | str, weights: str | Path) -> Matcher | None:
    """Build the matcher of a name, or None for the empty name. The matcher reads its weights at its first use.

    Args:
        name: ``"aliked"``, ``"xfeat"``, ``"loftr"``, or empty for no feature matching.
        weights: file of the network's weights; empty without a name.

    Raises:
        ValueError: if the name is unknown, or only one of name and weights is given.
    """
    if not name and not str(weights):
        return None
    if name not in _MATCHERS:
        msg = f"matcher should be one of {', '.join(map(repr, _MATCHERS))}, or empty without weights, got {name!r}."
        raise ValueError(msg)
    if not str(weights):
        msg = f"The matcher {name!r} needs matcher_weights, the file of its weights: nothing is downloaded."
        raise ValueError(msg)
    return _MATCHERS[name](weights)


def _mutual(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Points of two images whose descriptors are each other's nearest."""
    similarity = first[1] @ second[1].T
    if not similarity.numel():
        return first[0][:0], second[0][:0]
    there, back = similarity.argmax(1), similarity.argmax(0)
    own = torch.arange(len(there), device=there.device)
    mutual = back[there] == own
    return first[0][mutual], second[0][there[mutual]]


def _kornia_class(name: str) -> type:
    import kornia.feature

    if not hasattr(kornia.feature, name):
        msg = f"kornia {kornia.__version__} has no {name}: install kornia 0.8.3 or later."
        raise ImportError(msg)
    return getattr(kornia.feature, name)
