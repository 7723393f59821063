# SPDX-License-Identifier: Apache-2.0
"""Mutual scoring of unlabelled images: what few others have is anomalous (Li et al., MuSc, ICLR 2024).

Every patch is compared with all patches of every other image. A patch of a good object finds one like it in most of
them; a defect does not, as defects are rare and differ from each other. Nothing is trained, and no image is known to be
good, but all images have to be there: scores depend on the whole set.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from anomalib_pose.compare.maps import upsample

_ROWS = 4096  # of a matrix of cosines; bounds its size


def neighborhood_means(features: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c h w"]:
    """Mean over the square of ``size`` patches (odd) around each patch, what lies outside left out (section 3.1).

    Raises:
        ValueError: if ``size`` is even or below 1.
    """
    if size < 1 or size % 2 == 0:
        msg = f"The size of a neighborhood is an odd number of patches, 1 or more, got {size}."
        raise ValueError(msg)
    return functional.avg_pool2d(features, size, 1, size // 2, count_include_pad=False)


def patch_scores(images: Sequence[Float[Tensor, "_ c"]], share: float = 0.3) -> list[Float[Tensor, " _"]]:
    r"""How unlike the patches of other images each patch is (section 3.2).

    With unit vectors :math:`f` of the patches, the distance of patch p of image i from image j is

    .. math:: a_{ij}(p) = \min_q |f_i(p) - f_j(q)| / 2 \in [0, 1],

    and the score is the mean of the lowest ``share`` of :math:`a_{ij}(p)` over the other images j: an anomalous patch
    is far from all of them, while a good one that looks rare needs but a few like it. One product of matrices serves
    both directions of a pair. The distances of ``m`` images with ``p`` patches take ``2 m^2 p`` bytes.

    Args:
        images: features of each image's patches, of any length; the numbers of patches may differ, none may be 0.
        share: in (0, 1]; at least one image counts.

    Raises:
        ValueError: if there are fewer than two images, one has no patches, or ``share`` is out of its range.
    """
    count = len(images)
    if count < 2 or not 0 < share <= 1 or any(not len(image) for image in images):
        lengths = sorted({len(image) for image in images})
        msg = (
            "Mutual scoring takes two or more images with patches, and a share in (0, 1]; got "
            f"{count} images with {lengths} patches and a share of {share}."
        )
        raise ValueError(msg)
    units = [functional.normalize(image.float(), dim=1) for image in images]
    distances = [unit.new_empty(count - 1, len(unit), dtype=torch.float16) for unit in units]
    for i, one in enumerate(units):
        for j in range(i + 1, count):
            forth, back = _nearest_cosines(one, units[j])
            # image i's own place is left out
            distances[i][j - 1] = _half_distance(forth)
            distances[j][i] = _half_distance(back)
    kept = max(1, round(share * (count - 1)))
    return [distance.float().topk(kept, 0, largest=False).values.mean(0) for distance in distances]


def _nearest_cosines(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine of each unit vector with those of the other set, in both directions."""
    forth = []
    back = torch.full_like(other[:, 0], -1.0)
    for rows in one.split(_ROWS):
        cosines = rows @ other.T
        forth.append(cosines.amax(1))
        back = torch.maximum(back, cosines.amax(0))
    return torch.cat(forth), back


def _half_distance(cosine: Tensor) -> Tensor:
    """Half the distance of unit vectors, in [0, 1]."""
    return ((1 - cosine) / 2).clamp(0, 1).sqrt()


def mutual_maps(
    layers: Sequence[Float[Tensor, "n _ _ _"]],
    foreground: Bool[Tensor, "n _ _"] | None = None,
    *,
    neighborhoods: Sequence[int] = (1,),
    share: float = 0.3,
    step: Callable[[], None] | None = None,
) -> Float[Tensor, "n _ _"]:
    """Mean of the patch scores over layers and sizes of neighborhoods, on the finest layer's grid (section 3.2).

    Args:
        layers: feature maps of all images, one tensor for each layer (n, c, h, w), in any precision.
        foreground: pixels or patches that count, at any resolution: a patch with one of them is scored and compared
            with; the others score 0. None for all. Where an image has none, all of its patches count.
        neighborhoods: sizes; see ``neighborhood_means``.
        share: see ``patch_scores``.
        step: called after each layer and size.

    Raises:
        ValueError: if there is no layer or size, or see ``neighborhood_means`` and ``patch_scores``.
    """
    if not layers or not neighborhoods:
        msg = f"Mutual scoring needs one layer and one neighborhood or more, got {len(layers)} and {neighborhoods}."
        raise ValueError(msg)
    height, width = max((layer.shape[-2:] for layer in layers), key=lambda size: size[0] * size[1])
    total = torch.zeros(len(layers[0]), height, width, device=layers[0].device)
    for layer in layers:
        grid = tuple(layer.shape[-2:])
        counted = _counted(foreground, grid, len(layer)).to(layer.device)
        for size in neighborhoods:
            patches = neighborhood_means(layer.float(), size).permute(0, 2, 3, 1)
            scores = patch_scores([patch[here] for patch, here in zip(patches, counted, strict=True)], share)
            maps = torch.zeros(counted.shape, device=layer.device)
            maps[counted] = torch.cat(scores)
            total += maps if grid == (height, width) else upsample(maps, (height, width))
            if step is not None:
                step()
    return total / (len(layers) * len(neighborhoods))


def _counted(foreground: Tensor | None, grid: tuple[int, ...], count: int) -> Tensor:
    """Patches of a grid that count (n, h, w)."""
    if foreground is None:
        return torch.ones(count, *grid, dtype=torch.bool)
    shares = functional.adaptive_max_pool2d(foreground[:, None].float(), grid)[:, 0]
    return (shares > 0) | ~(shares > 0).any((1, 2), keepdim=True)


def above_median(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """What each map is above the median of its patches with a score; 0 for the rest.

    Not in the paper. An object in a pose that few others have is unlike them everywhere, and would be taken for more
    anomalous than one with a small defect.
    """
    medians = [each[each > 0].median() if bool((each > 0).any()) else each.new_zeros(()) for each in maps]
    return (maps - torch.stack(medians)[:, None, None]).clamp_min(0)


def rescored(
    scores: Float[Tensor, " n"], descriptors: Float[Tensor, "n c"], windows: Sequence[int] = (1, 2, 3)
) -> Float[Tensor, " n"]:
    r"""Scores of images, each drawn towards those of the images that look most like it (section 3.3).

    .. math:: s_i' = \frac{1}{|K|} \sum_{k \in K} \frac{\sum_{j \in N_k(i)} w_{ij} s_j}{\sum_{j \in N_k(i)} w_{ij}}

    :math:`w_{ij}` is the cosine of the descriptors, at least 0, and :math:`N_k(i)` the k images with the largest one,
    the image itself included.

    Args:
        scores: one for each image.
        descriptors: one for each image, of any length: the class token, or the mean of a feature map.
        windows: numbers of images k; those above n are taken as n.

    Raises:
        ValueError: if there is no window, or one is below 1.
    """
    if not windows or min(windows) < 1:
        msg = f"Windows are numbers of images, 1 or more, got {tuple(windows)}."
        raise ValueError(msg)
    unit = functional.normalize(descriptors.float(), dim=1)
    cosines = (unit @ unit.T).clamp_min(0)
    cosines.fill_diagonal_(1.0)
    nearest = cosines.topk(min(max(windows), len(scores)), 1)
    total = torch.zeros_like(scores)
    for window in windows:
        weights = nearest.values[:, :window]
        total += (weights * scores[nearest.indices[:, :window]]).sum(1) / weights.sum(1)
    return total / len(windows)
