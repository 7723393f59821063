# SPDX-License-Identifier: Apache-2.0
"""Mutual scoring of unlabeled images (Li et al., MuSc, ICLR 2024): rare patches are anomalous.

Each patch is compared with all patches of all other images. Most other images contain a patch similar to a normal
patch. They contain none similar to a defect, because defects are rare and differ from each other. Nothing is trained
and no image needs to be known as normal, but all images must be present: scores depend on the whole set.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from anomalib_pose.compare.maps import upsample

_ROWS = 4096  # rows of a matrix of cosines; bounds its size


def neighborhood_means(features: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c h w"]:
    """Compute the mean over the square of ``size`` patches (odd) around each patch, without padding (section 3.1).

    Raises:
        ValueError: if ``size`` is even or below 1.
    """
    if size < 1 or size % 2 == 0:
        msg = f"The size of a neighborhood should be an odd number of patches, 1 or more, got {size}."
        raise ValueError(msg)
    return functional.avg_pool2d(features, size, 1, size // 2, count_include_pad=False)


def patch_scores(images: Sequence[Float[Tensor, "_ c"]], share: float = 0.3) -> list[Float[Tensor, " _"]]:
    r"""Score each patch by its distance from the patches of the other images (section 3.2).

    With unit vectors :math:`f` of the patches, the distance of patch p of image i from image j is

    .. math:: a_{ij}(p) = \min_q |f_i(p) - f_j(q)| / 2 \in [0, 1],

    and the score is the mean of the lowest fraction ``share`` of :math:`a_{ij}(p)` over the other images j. An
    anomalous patch is far from all of them. A rare but normal patch needs only a few similar ones. One matrix product
    serves both directions of a pair. The distances of ``m`` images with ``p`` patches take ``2 m^2 p`` bytes.

    Args:
        images: features of the patches of each image, not normalized; the numbers of patches may differ, none may be 0.
        share: fraction of the other images that counts, in (0, 1]; at least one image counts.

    Raises:
        ValueError: if there are fewer than two images, one has no patches, or ``share`` is out of its range.
    """
    count = len(images)
    if count < 2 or not 0 < share <= 1 or any(not len(image) for image in images):
        lengths = sorted({len(image) for image in images})
        msg = (
            "Mutual scoring needs two or more images with patches, and a share in (0, 1]; got "
            f"{count} images with {lengths} patches and a share of {share}."
        )
        raise ValueError(msg)
    units = [functional.normalize(image.float(), dim=1) for image in images]
    distances = [unit.new_empty(count - 1, len(unit), dtype=torch.float16) for unit in units]
    for i in range(count):
        for j in range(i + 1, count):
            cosines_i, cosines_j = _nearest_cosines(units[i], units[j])
            # rows of image i skip image i itself
            distances[i][j - 1] = _half_distance(cosines_i)
            distances[j][i] = _half_distance(cosines_j)
    nearest_images = max(1, round(share * (count - 1)))
    return [distance.float().topk(nearest_images, 0, largest=False).values.mean(0) for distance in distances]


def _nearest_cosines(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the largest cosine of each unit vector of one set with those of the other set, in both directions."""
    first_largest = []
    second_largest = torch.full_like(second[:, 0], -1.0)
    for rows in first.split(_ROWS):
        cosines = rows @ second.T
        first_largest.append(cosines.amax(1))
        second_largest = torch.maximum(second_largest, cosines.amax(0))
    return torch.cat(first_largest), second_largest


def _half_distance(cosine: Tensor) -> Tensor:
    """Compute half the distance of unit vectors, in [0, 1], from their cosine."""
    return ((1 - cosine) / 2).clamp(0, 1).sqrt()


def mutual_maps(
    layers: Sequence[Float[Tensor, "n _ _ _"]],
    foreground: Bool[Tensor, "n _ _"] | None = None,
    *,
    neighborhoods: Sequence[int] = (1,),
    share: float = 0.3,
    step: Callable[[], None] | None = None,
) -> Float[Tensor, "n _ _"]:
    """Average the patch scores over layers and neighborhood sizes, on the finest layer's grid (section 3.2).

    Args:
        layers: feature maps of all images, one tensor for each layer (n, c, h, w), in any precision.
        foreground: mask of the object at any resolution. Only patches with foreground are scored and compared; all
            other patches score 0. None for no mask. In an image without foreground, all patches are scored.
        neighborhoods: sizes of neighborhoods; see ``neighborhood_means``.
        share: see ``patch_scores``.
        step: called after each layer and size.

    Raises:
        ValueError: if there is no layer or no size; see also ``neighborhood_means`` and ``patch_scores``.
    """
    if not layers or not neighborhoods:
        msg = f"Mutual scoring needs at least one layer and one neighborhood, got {len(layers)} and {neighborhoods}."
        raise ValueError(msg)
    height, width = max((layer.shape[-2:] for layer in layers), key=lambda size: size[0] * size[1])
    total = torch.zeros(len(layers[0]), height, width, device=layers[0].device)
    for layer in layers:
        grid = tuple(layer.shape[-2:])
        scored = _scored_patches(foreground, grid, len(layer)).to(layer.device)
        for size in neighborhoods:
            patches = neighborhood_means(layer.float(), size).permute(0, 2, 3, 1)
            scores = patch_scores([patch[mask] for patch, mask in zip(patches, scored, strict=True)], share)
            maps = torch.zeros(scored.shape, device=layer.device)
            maps[scored] = torch.cat(scores)
            total += maps if grid == (height, width) else upsample(maps, (height, width))
            if step is not None:
                step()
    return total / (len(layers) * len(neighborhoods))


def _scored_patches(foreground: Tensor | None, grid: tuple[int, ...], count: int) -> Tensor:
    """Compute the mask of the patches of a grid that are scored (n, h, w)."""
    if foreground is None:
        return torch.ones(count, *grid, dtype=torch.bool)
    has_foreground = functional.adaptive_max_pool2d(foreground[:, None].float(), grid)[:, 0] > 0
    return has_foreground | ~has_foreground.any((1, 2), keepdim=True)


def above_median(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Subtract from each map the median of its scores above 0; results below 0 become 0.

    This is not in the paper. An object in a rare pose differs from the other images everywhere. Without the subtraction
    it would score higher than an object with a small defect.
    """
    medians = [scores[scores > 0].median() if bool((scores > 0).any()) else scores.new_zeros(()) for scores in maps]
    return (maps - torch.stack(medians)[:, None, None]).clamp_min(0)


def rescored(
    scores: Float[Tensor, " n"], descriptors: Float[Tensor, "n c"], windows: Sequence[int] = (1, 2, 3)
) -> Float[Tensor, " n"]:
    r"""Average the score of each image with the scores of the most similar images (section 3.3).

    .. math:: s_i' = \frac{1}{|K|} \sum_{k \in K} \frac{\sum_{j \in N_k(i)} w_{ij} s_j}{\sum_{j \in N_k(i)} w_{ij}}

    :math:`w_{ij}` is the cosine of the descriptors, at least 0, and :math:`N_k(i)` the k images with the largest one,
    the image itself included.

    Args:
        scores: one for each image.
        descriptors: one for each image, not normalized: the class token, or the mean of a feature map.
        windows: numbers of images k; n if k is larger.

    Raises:
        ValueError: if there is no window, or a window is below 1.
    """
    if not windows or min(windows) < 1:
        msg = f"windows should be numbers of images, 1 or more, got {tuple(windows)}."
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
