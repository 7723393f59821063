# SPDX-License-Identifier: Apache-2.0
"""What is left to a query whose camera was not found: likeness to patches of good views, from wherever they look."""

import logging
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.maps import gaussian_blur
from anomalib_pose.geometry import farthest_point_sampling

logger = logging.getLogger(__name__)

_SIZE = 256  # longer side that images are resized to
_STRIDES = (8, 16)  # stages whose cells are of a size that says something of a part of an object
_BLUR_SIGMA = 4.0
_LARGEST_VIEWS = 60
_CHUNK = 2048
_CHANGED = 0.05  # color that a pixel has to differ by to be damaged
_EVERY = 5  # pixels of damaged views, one of so many, that two ways of finding the damage are compared by


class PatchMemory(nn.Module):
    """Patches of good views by the features of a network, as PatchCore (Roth et al., CVPR 2022) remembers them.

    Features of the network's middle stages, smoothed over three cells, are chosen by farthest-point sampling. A
    query's patch is as anomalous as it is far from the nearest one remembered; the image's score is that of its worst
    patch. ``calibrate`` brings maps and scores to the scale of those that come from a comparison with a rendering, so
    that both can be mixed; ``weigh`` finds out how much of each is to be trusted.

    Args:
        patches: how many are remembered.
        seed: of the coreset's first patch.
    """

    memory: Tensor
    gain: Tensor
    offset: Tensor
    trust: Tensor

    def __init__(self, patches: int = 1000, seed: int = 0) -> None:
        super().__init__()
        if patches < 1:
            msg = f"At least one patch has to be remembered, got patches={patches}."
            raise ValueError(msg)
        self.patches = patches
        self.seed = seed
        self.register_buffer("memory", torch.zeros(0, 0))
        self.register_buffer("gain", torch.ones(2))
        self.register_buffer("offset", torch.zeros(2))
        self.register_buffer("trust", torch.zeros(2))

    @property
    def fitted(self) -> bool:
        """Whether anything is remembered."""
        return bool(len(self.memory))

    @torch.no_grad()
    def fit(self, extractor: FeatureExtractor, images: Float[Tensor, "n 3 h w"]) -> None:
        """Remember good views; of many, some that are spread over them.

        Args:
            extractor: the network.
            images: RGB in [0, 1].
        """
        chosen = torch.linspace(0, len(images) - 1, min(len(images), _LARGEST_VIEWS)).round().long().tolist()
        views = [_embedding(extractor, images[index][None]).flatten(2)[0].T for index in chosen]
        patches = torch.cat(views)
        first = int(torch.randint(len(patches), (), generator=torch.Generator().manual_seed(self.seed)))
        # anomalib's KCenterGreedy copies all patches in each step, and has filled 24 GB with them.
        self.memory = patches[farthest_point_sampling(patches, min(self.patches, len(patches)), first)]
        logger.info("Remembered %d of %d patches of %d views.", len(self.memory), len(patches), len(chosen))

    @torch.no_grad()
    def distances(
        self, extractor: FeatureExtractor, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Smooth maps of the distance to the nearest remembered patch, and the largest distance of each image.

        Args:
            extractor: the network.
            images: RGB in [0, 1].
        """
        maps, scores = [], []
        for image in images:
            embedding = _embedding(extractor, image[None])
            nearest = torch.cat(
                [torch.cdist(some, self.memory).amin(1) for some in embedding.flatten(2)[0].T.split(_CHUNK)]
            )
            scores.append(nearest.amax())
            cells = nearest.view(1, 1, *embedding.shape[-2:])
            whole = functional.interpolate(cells, image.shape[-2:], mode="bilinear")[:, 0]
            maps.append(gaussian_blur(whole, _BLUR_SIGMA)[0])
        return torch.stack(maps), torch.stack(scores)

    @torch.no_grad()
    def calibrate(
        self,
        own: tuple[Float[Tensor, "n h w"], Float[Tensor, " n"]],
        wanted: tuple[Float[Tensor, "n h w"], Float[Tensor, " n"]],
    ) -> None:
        """Learn the scale on which good views get the mean and the spread that the comparison gives them.

        Args:
            own: ``distances`` of good views that are not remembered.
            wanted: maps and scores of the same views by comparison.
        """
        for index, (ours, theirs) in enumerate(zip(own, wanted, strict=True)):
            spread = ours.std() if ours.numel() > 1 else ours.new_zeros(())
            # One view, or views that are all the same, have a mean and no spread.
            ratio = theirs.std() / spread if float(spread) > 0 else theirs.mean() / ours.mean().clamp(min=1e-6)
            self.gain[index] = ratio
            self.offset[index] = theirs.mean() - ratio * ours.mean()

    def forward(
        self, extractor: FeatureExtractor, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Anomaly maps, 0 or more, and scores on the scale of the comparison.

        Scores below that scale are negative: were they 0, images less anomalous than it tells would be alike.

        Args:
            extractor: the network.
            images: RGB in [0, 1].
        """
        maps, scores = self.distances(extractor, images)
        return (self.gain[0] * maps + self.offset[0]).clamp(min=0), self.gain[1] * scores + self.offset[1]

    @torch.no_grad()
    def fit_beside(
        self,
        extractor: FeatureExtractor,
        images: Float[Tensor, "n 3 h w"],
        held_out: tuple[int, ...],
        compared: tuple[Float[Tensor, "m h w"], Float[Tensor, " m"]],
    ) -> None:
        """``fit`` and ``calibrate``, by views that are not remembered.

        Where none are held out, each view is held against the memory of the others, before all are remembered.

        Args:
            extractor: the network.
            images: all training views, RGB in [0, 1].
            held_out: indices of those that are not to be remembered.
            compared: maps and scores of the held-out views, or of all where there are none, by comparison.
        """
        single = [(index,) for index in range(len(images))] if len(images) > 1 else []
        own = []
        for group in [held_out] if held_out else single:
            others = torch.ones(len(images), dtype=torch.bool)
            others[list(group)] = False
            self.fit(extractor, images[others])
            own.append(self.distances(extractor, images[list(group)]))
        if not held_out:
            self.fit(extractor, images)
        if own:
            maps, scores = (torch.cat(parts) for parts in zip(*own, strict=True))
            self.calibrate((maps, scores), compared)

    @torch.no_grad()
    def weigh(
        self,
        extractor: FeatureExtractor,
        good: tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n h w"], Float[Tensor, " n"]],
        damaged: tuple[Float[Tensor, "m 3 h w"], Float[Tensor, "m h w"], Float[Tensor, " m"]],
    ) -> None:
        """Learn the share that the memory has where the camera is known, from artificial damage.

        Objects that move, gloss or are rendered badly differ from their renderings more than by a defect. The memory
        takes the share of the comparison's mistakes (1 - AUROC) that it does not make itself, for maps by the pixels of
        damaged views, for scores by views.

        Args:
            extractor: the network.
            good: views that are not remembered, and their maps and scores by comparison.
            damaged: copies of them in the same order, once or several times, that something was done to.
        """
        copies = good[0].repeat(len(damaged[0]) // len(good[0]), 1, 1, 1)
        changed = ((damaged[0] - copies).abs().amax(1) > _CHANGED).flatten()[::_EVERY]
        maps, bad = self(extractor, damaged[0])
        pixels = (_mistakes(some.flatten()[::_EVERY], changed) for some in (damaged[1], maps))
        is_bad = torch.arange(len(good[2]) + len(bad), device=bad.device) >= len(good[2])
        scores = (torch.cat([good[2], damaged[2]]), torch.cat([self(extractor, good[0])[1], bad]))
        for index, (theirs, ours) in enumerate((pixels, (_mistakes(some, is_bad) for some in scores))):
            self.trust[index] = max(0.0, 1 - ours / theirs)
        logger.info("The memory's share of maps and scores is %.2f and %.2f at least.", *self.trust.tolist())

    @torch.no_grad()
    def mixed(
        self,
        extractor: FeatureExtractor,
        queries: Float[Tensor, "b 3 h w"],
        compared: tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]],
        share: Float[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Maps and scores by comparison, of which the memory takes a share.

        Args:
            extractor: the network.
            queries: RGB in [0, 1].
            compared: maps and scores by comparison.
            share: of the memory in each, in [0, 1]; more where ``weigh`` says so. What has no share is not looked at.
        """
        shares = torch.maximum(share[:, None], self.trust.to(share))
        chosen = shares.amax(1).nonzero().flatten()
        if not len(chosen):
            return compared
        maps, scores = compared
        other_maps, other_scores = self(extractor, queries[chosen])
        of_map, of_score = shares[chosen].unbind(1)
        return (
            maps.index_copy(0, chosen, torch.lerp(maps[chosen], other_maps, of_map[:, None, None])),
            scores.index_copy(0, chosen, torch.lerp(scores[chosen], other_scores, of_score)),
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let a checkpoint decide how much is remembered; older ones know of no trust."""
        state_dict.setdefault(prefix + "trust", torch.zeros_like(self.trust))
        resize_buffers(self, ("memory",), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _mistakes(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Share of pairs that are ranked wrongly, 1 - AUROC; never 0, for pairs are few."""
    pairs = max(1, int(positive.sum()) * int((~positive).sum()))
    # scaled: torchmetrics takes what is outside of 0 to 1 for logits
    scaled = (scores - scores.amin()) / (scores.amax() - scores.amin()).clamp(min=1e-6)
    auroc = float(binary_auroc(scaled, positive.long()))
    return ((1 - auroc) * pairs + 0.5) / (pairs + 1)


def _embedding(extractor: FeatureExtractor, images: Tensor) -> Tensor:
    """Features (B, C, h, w) of the middle stages at the finest one's cells, smoothed."""
    scale = _SIZE / max(images.shape[-2:])
    size = [max(32, round(side * scale)) for side in images.shape[-2:]]
    resized = functional.interpolate(images, size, mode="bilinear", antialias=True)
    stages = [
        stage
        for stage, stride in zip(extractor(resized), extractor.strides, strict=True)
        if stride in _STRIDES or stride == max(extractor.strides)
    ]
    smooth = [functional.avg_pool2d(stage, 3, 1, 1) for stage in stages]
    return torch.cat([functional.interpolate(stage, smooth[0].shape[-2:], mode="bilinear") for stage in smooth], 1)
