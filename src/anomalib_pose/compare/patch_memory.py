# SPDX-License-Identifier: Apache-2.0
"""Memory bank of patches of normal views, for queries whose pose has a low confidence."""

import logging
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.maps import gaussian_blur_mirrored
from anomalib_pose.geometry import farthest_point_sampling
from anomalib_pose.progress import stage, track

logger = logging.getLogger(__name__)

_SIZE = 256  # longer side that images are resized to
_STRIDES = (8, 16)  # layers whose cells are about as large as a part of an object
_BLUR_SIGMA = 4.0
_MAX_VIEWS = 60
_CHUNK = 2048  # patches whose distances to the bank are computed at once
_MIN_DEFECT_DIFFERENCE = 0.05  # color difference from the normal view above which a pixel belongs to the defect
_PIXEL_STEP = 5  # every fifth pixel is used to compare the memory with the comparison


class PatchMemory(nn.Module):
    """Memory bank of patch features of normal views, as in PatchCore (Roth et al., CVPR 2022).

    The features are those of the network's middle layers, averaged over three by three cells. Farthest-point sampling
    selects the patches of the bank. The anomaly of a query's patch is its distance to the nearest patch of the bank.
    The score of an image is that of its most anomalous patch.

    ``calibrate`` brings maps and scores to the scale of a comparison with a reference, so that both can be mixed.
    ``learn_mixing_weights`` learns the weight of the memory in such a mix.

    Args:
        patches: number of patches in the bank.
        seed: seed of the first patch.

    Raises:
        ValueError: if the number of patches is below 1.
    """

    bank: Tensor
    gain: Tensor
    offset: Tensor
    mixing_weights: Tensor

    def __init__(self, patches: int = 1000, seed: int = 0) -> None:
        super().__init__()
        if patches < 1:
            msg = f"The memory needs at least one patch, got patches={patches}."
            raise ValueError(msg)
        self.patches = patches
        self.seed = seed
        self.register_buffer("bank", torch.zeros(0, 0))
        self.register_buffer("gain", torch.ones(2))
        self.register_buffer("offset", torch.zeros(2))
        self.register_buffer("mixing_weights", torch.zeros(2))

    @property
    def fitted(self) -> bool:
        """Whether the bank has patches."""
        return bool(len(self.bank))

    @torch.no_grad()
    def fit(self, extractor: FeatureExtractor, images: Float[Tensor, "n 3 h w"]) -> None:
        """Fill the bank with patches of at most 60 evenly spaced normal views.

        Args:
            extractor: network that computes the features.
            images: RGB in [0, 1].
        """
        selected_views = torch.linspace(0, len(images) - 1, min(len(images), _MAX_VIEWS)).round().long().tolist()
        patches = torch.cat(
            [
                _embedding(extractor, images[index][None]).flatten(2)[0].T
                for index in track(selected_views, "Read patches")
            ]
        )
        first = int(torch.randint(len(patches), (), generator=torch.Generator().manual_seed(self.seed)))
        # anomalib's KCenterGreedy copies all patches in each step, and has filled 24 GB of memory.
        with stage("Select patches"):
            self.bank = patches[farthest_point_sampling(patches, min(self.patches, len(patches)), first)]
        logger.info(
            "The patch memory holds %d of the %d patches of %d views.",
            len(self.bank),
            len(patches),
            len(selected_views),
        )

    @torch.no_grad()
    def distances(
        self, extractor: FeatureExtractor, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Compute smooth maps of the distance to the nearest patch of the bank, and the largest distance of each image.

        Args:
            extractor: network that computes the features.
            images: RGB in [0, 1].
        """
        maps, scores = [], []
        for image in track(images, "Compare with patches") if len(images) > 1 else images:
            embedding = _embedding(extractor, image[None])
            chunks = embedding.flatten(2)[0].T.split(_CHUNK)
            nearest = torch.cat([torch.cdist(chunk, self.bank).amin(1) for chunk in chunks])
            scores.append(nearest.amax())
            cells = nearest.view(1, 1, *embedding.shape[-2:])
            whole = functional.interpolate(cells, image.shape[-2:], mode="bilinear")[:, 0]
            maps.append(gaussian_blur_mirrored(whole, _BLUR_SIGMA)[0])
        return torch.stack(maps), torch.stack(scores)

    @torch.no_grad()
    def calibrate(
        self,
        distances: tuple[Float[Tensor, "n h w"], Float[Tensor, " n"]],
        compared: tuple[Float[Tensor, "n h w"], Float[Tensor, " n"]],
    ) -> None:
        """Learn the scale on which normal views get the mean and the standard deviation of the comparison.

        Args:
            distances: ``distances`` of normal views whose patches are not in the bank.
            compared: maps and scores of the same views by the comparison with references.
        """
        for index, (distance, target) in enumerate(zip(distances, compared, strict=True)):
            spread = distance.std() if distance.numel() > 1 else distance.new_zeros(())
            # One view, or views without differences, have a mean but no spread.
            ratio = target.std() / spread if float(spread) > 0 else target.mean() / distance.mean().clamp(min=1e-6)
            self.gain[index] = ratio
            self.offset[index] = target.mean() - ratio * distance.mean()

    def forward(
        self, extractor: FeatureExtractor, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Compute anomaly maps, 0 or more, and scores, both on the scale of the comparison.

        Scores may be negative. With a minimum of 0, all images with a negative score would have the same score.

        Args:
            extractor: network that computes the features.
            images: RGB in [0, 1].
        """
        maps, scores = self.distances(extractor, images)
        return (self.gain[0] * maps + self.offset[0]).clamp(min=0), self.gain[1] * scores + self.offset[1]

    @torch.no_grad()
    def fit_and_calibrate(
        self,
        extractor: FeatureExtractor,
        images: Float[Tensor, "n 3 h w"],
        held_out: tuple[int, ...],
        compared: tuple[Float[Tensor, "m h w"], Float[Tensor, " m"]],
    ) -> None:
        """Fill the bank with the views that are not held out, and calibrate on the held-out views.

        If no view is held out, the distances of each view are computed to a bank of all other views. The bank is filled
        with all views afterwards.

        Args:
            extractor: network that computes the features.
            images: all training views, RGB in [0, 1].
            held_out: indices of the views that stay out of the bank.
            compared: maps and scores of the held-out views, or of all views if none is held out, by the comparison.
        """
        single_views = [(index,) for index in range(len(images))] if len(images) > 1 else []
        distances = []
        for left_out in [held_out] if held_out else single_views:
            in_bank = torch.ones(len(images), dtype=torch.bool)
            in_bank[list(left_out)] = False
            self.fit(extractor, images[in_bank])
            distances.append(self.distances(extractor, images[list(left_out)]))
        if not held_out:
            self.fit(extractor, images)
        if distances:
            maps, scores = (torch.cat(parts) for parts in zip(*distances, strict=True))
            self.calibrate((maps, scores), compared)

    @torch.no_grad()
    def learn_mixing_weights(
        self,
        extractor: FeatureExtractor,
        normal: tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n h w"], Float[Tensor, " n"]],
        defective: tuple[Float[Tensor, "m 3 h w"], Float[Tensor, "m h w"], Float[Tensor, " m"]],
    ) -> None:
        """Learn the memory's least weight, for maps and for scores, from synthetic defects.

        Some objects move, have gloss or are rendered badly: their residuals exceed those of a defect. The weight is the
        fraction of the comparison's errors (1 - AUROC) that the memory avoids, at least 0. Maps are ranked by pixels of
        the defective views, scores by views.

        Args:
            extractor: network that computes the features.
            normal: views that are not in the bank, with their maps and scores by the comparison.
            defective: copies of these views with synthetic defects, once or several times in the same order, with their
                maps and scores by the comparison.
        """
        copies = normal[0].repeat(len(defective[0]) // len(normal[0]), 1, 1, 1)
        differences = (defective[0] - copies).abs().amax(1)
        is_defect = (differences > _MIN_DEFECT_DIFFERENCE).flatten()[::_PIXEL_STEP]
        memory_maps, memory_scores = self(extractor, defective[0])
        is_defective = torch.arange(len(normal[2]) + len(memory_scores), device=memory_scores.device) >= len(normal[2])
        compared_scores = torch.cat([normal[2], defective[2]])
        memory_scores = torch.cat([self(extractor, normal[0])[1], memory_scores])
        errors = (
            [_ranking_error(maps.flatten()[::_PIXEL_STEP], is_defect) for maps in (defective[1], memory_maps)],
            [_ranking_error(scores, is_defective) for scores in (compared_scores, memory_scores)],
        )
        for index, (comparison_error, memory_error) in enumerate(errors):
            self.mixing_weights[index] = max(0.0, 1 - memory_error / comparison_error)
        logger.info(
            "The patch memory has a weight of at least %.2f in maps and %.2f in scores.", *self.mixing_weights.tolist()
        )

    @torch.no_grad()
    def mix(
        self,
        extractor: FeatureExtractor,
        queries: Float[Tensor, "b 3 h w"],
        compared: tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]],
        weight: Float[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Mix maps and scores of the memory into those of the comparison.

        Args:
            extractor: network that computes the features.
            queries: RGB in [0, 1].
            compared: maps and scores of the queries by the comparison.
            weight: weight of the memory for each query, in [0, 1]; the learned mixing weights are its minimum. Queries
                with weight 0 are not processed.
        """
        weights = torch.maximum(weight[:, None], self.mixing_weights.to(weight))
        selected = weights.amax(1).nonzero().flatten()
        if not len(selected):
            return compared
        maps, scores = compared
        memory_maps, memory_scores = self(extractor, queries[selected])
        map_weight, score_weight = weights[selected].unbind(1)
        return (
            maps.index_copy(0, selected, torch.lerp(maps[selected], memory_maps, map_weight[:, None, None])),
            scores.index_copy(0, selected, torch.lerp(scores[selected], memory_scores, score_weight)),
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the bank to that of the checkpoint; older checkpoints have no mixing weights."""
        state_dict.setdefault(prefix + "mixing_weights", torch.zeros_like(self.mixing_weights))
        resize_buffers(self, ("bank",), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _ranking_error(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Compute the fraction of pairs in the wrong order, 1 - AUROC; never 0, because the number of pairs is small."""
    pairs = max(1, int(positive.sum()) * int((~positive).sum()))
    # scaled, because torchmetrics interprets values outside [0, 1] as logits
    scaled = (scores - scores.amin()) / (scores.amax() - scores.amin()).clamp(min=1e-6)
    auroc = float(binary_auroc(scaled, positive.long()))
    return ((1 - auroc) * pairs + 0.5) / (pairs + 1)


def _embedding(extractor: FeatureExtractor, images: Tensor) -> Tensor:
    """Compute the smoothed features (B, C, h, w) of the middle layers on the grid of the finest one."""
    scale = _SIZE / max(images.shape[-2:])
    size = [max(32, round(side * scale)) for side in images.shape[-2:]]
    resized = functional.interpolate(images, size, mode="bilinear", antialias=True)
    layers = [
        layer
        for layer, stride in zip(extractor(resized), extractor.strides, strict=True)
        if stride in _STRIDES or stride == max(extractor.strides)
    ]
    smooth = [functional.avg_pool2d(layer, 3, 1, 1) for layer in layers]
    return torch.cat([functional.interpolate(layer, smooth[0].shape[-2:], mode="bilinear") for layer in smooth], 1)
