# SPDX-License-Identifier: Apache-2.0
"""Feature matchers: kornia's ALIKED, XFeat and LoFTR, with weights from a file."""

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
"""Names of ``make_matcher``; the empty name disables feature matching."""


class NetworkMatcher(ABC):
    """A network of kornia that reads its weights at its first use. It is not part of a model's state.

    Args:
        weights: file of the network's state dict.
    """

    name: ClassVar[str]
    class_name: ClassVar[str]
    not_in_files: ClassVar[tuple[str, ...]] = ()
    """Prefixes of entries that published files lack, because the network computes them or does not need them."""

    def __init__(self, weights: str | Path) -> None:
        self.weights = Path(weights)
        self._network: nn.Module | None = None

    @abstractmethod
    def build(self, network: type) -> nn.Module:
        """Build the network with random weights.

        Args:
            network: kornia's class of the network.
        """

    @abstractmethod
    def match(self, network: Any, image: Tensor, views: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Match an image with each view; see ``Matcher``.

        Args:
            network: the network with its weights, on the images' device.
            image: RGB (3, H, W) in [0, 1].
            views: RGB (V, 3, H, W) in [0, 1].
        """

    def load(self) -> None:
        """Read the weights, once; see ``Matcher``."""
        self._loaded_network()

    def _loaded_network(self) -> nn.Module:
        if self._network is None:
            weights = read_state_dict(self.weights, f"the weights of {self.name!r} as matcher_weights", repr(self.name))
            with torch.random.fork_rng(devices=[]):  # the random weights must not advance the global generator
                network = self.build(_kornia_class(self.class_name))
            self._load_weights(network, weights)
            self._network = network.eval()
            logger.info("Loaded %s from %s.", self.name, self.weights)
        return self._network

    def _load_weights(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        try:
            result = network.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # an entry has another shape
            raise ValueError(self._mismatch_message(str(error).splitlines()[-1].strip())) from error
        missing = [name for name in result.missing_keys if not name.startswith(self.not_in_files)]
        if missing or result.unexpected_keys:
            reason = f"{len(missing)} entries are missing and {len(result.unexpected_keys)} unknown"
            raise ValueError(self._mismatch_message(f"{reason}, {[*missing, *result.unexpected_keys][0]!r} first"))

    def _mismatch_message(self, reason: str) -> str:
        return f"{self.weights} should hold weights of {self.name!r}, but they do not fit: {reason}"

    @torch.no_grad()
    def __call__(
        self, image: Float[Tensor, "3 h w"], views: Float[Tensor, "v 3 h w"]
    ) -> list[tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]]:
        """Match an image with each view; see ``Matcher``."""
        return self.match(self._loaded_network().to(image.device), image, views)


class AlikedMatcher(NetworkMatcher):
    """ALIKED (Zhao et al. 2023). Matches are mutual nearest neighbors of its descriptors.

    Args:
        weights: file of ``aliked-n16``.
    """

    name = "aliked"
    class_name = "ALIKED"
    not_in_files = ("dkd.hw_grid",)

    def build(self, network: type) -> nn.Module:
        """Build the network; see ``NetworkMatcher``."""
        # Objects have little texture, so the strongest key points count however weak they are.
        return network("aliked-n16", max_num_keypoints=_KEYPOINTS, detection_threshold=0.0)

    def match(self, network: Any, image: Tensor, views: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Match an image with each view; see ``NetworkMatcher``."""
        image_features, *view_features = [
            (features.keypoints + 0.5, features.descriptors) for features in network(torch.cat([image[None], views]))
        ]
        return [_mutual_matches(image_features, features) for features in view_features]


class XFeatMatcher(NetworkMatcher):
    """Sparse XFeat (Potje et al. 2024). Matches are mutual nearest neighbors of its descriptors.

    Args:
        weights: file of XFeat, with or without its fine matcher, which this class does not use.
    """

    name = "xfeat"
    class_name = "XFeat"
    not_in_files = ("net.fine_matcher.",)

    def build(self, network: type) -> nn.Module:
        """Build the network; see ``NetworkMatcher``."""
        return network(top_k=_KEYPOINTS, detection_threshold=0.0)

    def _load_weights(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        # The files hold the network without the detector around it.
        super()._load_weights(network, {f"net.{name.removeprefix('net.')}": value for name, value in weights.items()})

    def match(self, network: Any, image: Tensor, views: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Match an image with each view; see ``NetworkMatcher``."""
        # XFeat resizes images to multiples of 32 and returns the corner of the resized image's pixel.
        sizes = (image.shape[-1], image.shape[-2])
        half_pixel = image.new_tensor([0.5 * size / max(32, size // 32 * 32) for size in sizes])
        outputs = network.detectAndCompute(torch.cat([image[None], views]))
        image_features, *view_features = [
            (output["keypoints"].clone() + half_pixel, output["descriptors"].clone()) for output in outputs
        ]
        return [_mutual_matches(image_features, features) for features in view_features]


class LoftrMatcher(NetworkMatcher):
    """LoFTR (Sun et al. 2021), which matches gray images without key points.

    Args:
        weights: file of the outdoor or the indoor weights.
    """

    name = "loftr"
    class_name = "LoFTR"
    not_in_files = ("pos_encoding.",)

    def build(self, network: type) -> nn.Module:
        """Build the network; see ``NetworkMatcher``."""
        return network(pretrained=None)

    def match(self, network: Any, image: Tensor, views: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Match an image with each view; see ``NetworkMatcher``."""
        features = network.extract_features(image.mean(0)[None, None])
        matches = [network({"features0": features, "image1": view.mean(0)[None, None]}) for view in views]
        # LoFTR's pixel centers are at halves already, unlike those of kornia's other networks.
        return [(match["keypoints0"], match["keypoints1"]) for match in matches]


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
        msg = f"The matcher {name!r} needs matcher_weights, the file of its weights. Nothing is downloaded."
        raise ValueError(msg)
    return _MATCHERS[name](weights)


def _mutual_matches(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the points of two images whose descriptors are mutual nearest neighbors.

    Args:
        first: key points (n, 2) and descriptors (n, d).
        second: key points (m, 2) and descriptors (m, d).
    """
    (first_points, first_descriptors), (second_points, second_descriptors) = first, second
    similarity = first_descriptors @ second_descriptors.T
    if not similarity.numel():
        return first_points[:0], second_points[:0]
    nearest_in_second, nearest_in_first = similarity.argmax(1), similarity.argmax(0)
    indices = torch.arange(len(nearest_in_second), device=nearest_in_second.device)
    mutual = nearest_in_first[nearest_in_second] == indices
    return first_points[mutual], second_points[nearest_in_second[mutual]]


def _kornia_class(name: str) -> type:
    import kornia.feature

    if not hasattr(kornia.feature, name):
        msg = f"kornia {kornia.__version__} has no {name}. Install kornia 0.8.3 or later."
        raise ImportError(msg)
    return getattr(kornia.feature, name)
