# SPDX-License-Identifier: Apache-2.0
"""Features of a whole set of clouds, grouped by category and by view, for mutual scoring."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from anomalib_pose.models.point_ad.cloud_grid import check_clouds, pixels_with_points
from anomalib_pose.models.point_ad.image_scores import ImageScores


@dataclass
class ViewFeatures:
    """Features of one view, or of the photographs, of all clouds that have it.

    Args:
        clouds: n indices of the clouds within their category.
        layers: for each cloud the feature maps (c, h, w) of each layer.
        foreground: for each cloud the patches that show the object (p, p), on the finest layer's grid.
    """

    clouds: list[int] = field(default_factory=list)
    layers: list[list[Tensor]] = field(default_factory=list)
    foreground: list[Tensor] = field(default_factory=list)

    def add(self, cloud: int, layers: list[Tensor], foreground: Tensor) -> None:
        """Add the features of one cloud.

        Args:
            cloud: index of the cloud within its category.
            layers: feature maps (c, h, w).
            foreground: pixels that show the object (s, s).
        """
        grid = max(tuple(layer.shape[-2:]) for layer in layers)
        self.clouds.append(cloud)
        self.layers.append(layers)
        self.foreground.append(functional.adaptive_max_pool2d(foreground[None].float(), grid)[0] > 0)


@dataclass
class CategoryFeatures:
    """Features of the clouds of one category.

    Args:
        names: image paths of the clouds.
        views: features of each view.
        photographs: features of the photographs, of those clouds that have one.
    """

    names: list[str] = field(default_factory=list)
    views: list[ViewFeatures] = field(default_factory=list)
    photographs: ViewFeatures = field(default_factory=ViewFeatures)

    @property
    def comparable(self) -> list[ViewFeatures]:
        """The views, and the photographs if there are two or more."""
        return [*self.views, self.photographs] if len(self.photographs.clouds) > 1 else self.views

    def scores_by_name(self, results: list[tuple[Tensor, Tensor]]) -> dict[str, ImageScores]:
        """Regroup the results of each view to the scores of each cloud.

        Args:
            results: maps (n, p, p) and scores (n,) for each element of ``comparable``.
        """
        views = results[: len(self.views)]
        maps, scores = (torch.stack(part, 1) for part in zip(*views, strict=True))
        by_name = {name: ImageScores(*parts) for name, *parts in zip(self.names, maps, scores, strict=True)}
        for photograph_maps, photograph_scores in results[len(self.views) :]:
            rows = zip(self.photographs.clouds, photograph_maps, photograph_scores, strict=True)
            for cloud, photograph_map, score in rows:
                name = self.names[cloud]
                by_name[name] = replace(by_name[name], photograph_map=photograph_map, photograph_score=score)
        return by_name


@torch.no_grad()
def read_features(
    batches: Iterable[Any], extract: Callable[[Tensor], list[Tensor]], device: torch.device, *, photographs: bool
) -> dict[str, CategoryFeatures]:
    """Compute the features of a set of clouds, in half precision on the CPU, by category.

    Args:
        batches: batches of clouds (``CloudBatch``).
        extract: computes the feature maps (b, c, h, w) of images.
        device: device of the computation.
        photographs: compute the features of photographs too.

    Raises:
        ValueError: if a batch has no views, or the clouds of a category have different numbers of views.
    """

    def extract_half(images: Tensor) -> list[Tensor]:
        return [layer.half().cpu() for layer in extract(images.to(device))]

    categories: dict[str, CategoryFeatures] = {}
    for batch in batches:
        check_clouds(batch)
        names = batch.category or [""] * len(batch.image_path)
        for index, (path, name) in enumerate(zip(batch.image_path, names, strict=True)):
            views, category = batch.views[index], categories.setdefault(name, CategoryFeatures())
            category.views = category.views or [ViewFeatures() for _ in views]
            if len(views) != len(category.views):
                msg = (
                    f"{path} has {len(views)} views, but earlier clouds have {len(category.views)}. Mutual scoring "
                    "needs the same views of all clouds."
                )
                raise ValueError(msg)
            cloud = len(category.names)
            category.names.append(path)
            foreground = pixels_with_points(batch.pixels[index], batch.visible[index], views.shape[-1])
            layers = extract_half(views)
            for number, view in enumerate(category.views):
                view.add(cloud, [layer[number] for layer in layers], foreground[number])
            if photographs and bool(batch.has_rgb[index]):
                photograph = extract_half(batch.image[index][None])
                category.photographs.add(cloud, [layer[0] for layer in photograph], batch.valid[index])
    return categories
