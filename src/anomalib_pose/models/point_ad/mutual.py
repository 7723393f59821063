# SPDX-License-Identifier: Apache-2.0
"""Scores of views by comparison with the same views of all other clouds of a set; see ``compare.mutual``."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.mutual import above_median, mutual_maps, rescored
from anomalib_pose.models.point_ad.types import ViewScores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MutualSettings:
    """How views are compared with each other.

    Args:
        neighborhoods: sizes of the squares of patches whose features are averaged.
        share: share of the other clouds, those most like it, that a patch is compared with.
        windows: numbers of similar views that a view's score is averaged over, itself included; empty for none.
        foreground_only: leave patches out that show no point of the cloud.
        centered: score a patch by what it is above the median of its view; see ``above_median``.
        fuse_rgb: compare photographs too, where there are some.

    Raises:
        ValueError: if a number is out of its range.
    """

    neighborhoods: tuple[int, ...] = (1,)
    share: float = 0.3
    windows: tuple[int, ...] = ()
    foreground_only: bool = True
    centered: bool = True
    fuse_rgb: bool = True

    def __post_init__(self) -> None:
        """Check the numbers before anything is read."""
        if not self.neighborhoods or any(size < 1 or size % 2 == 0 for size in self.neighborhoods):
            msg = f"neighbourhoods should be one or more odd numbers of patches, got {self.neighborhoods}."
            raise ValueError(msg)
        if not 0 < self.share <= 1:
            msg = f"share should be in (0, 1], got {self.share}."
            raise ValueError(msg)
        if any(window < 1 for window in self.windows):
            msg = f"windows should be numbers of views, 1 or more, got {self.windows}."
            raise ValueError(msg)


@dataclass
class _OneView:
    """Features of one view, or of the photographs, of all clouds that have it."""

    clouds: list[int] = field(default_factory=list)
    layers: list[list[Tensor]] = field(default_factory=list)
    foreground: list[Tensor] = field(default_factory=list)

    def add(self, cloud: int, layers: list[Tensor], shown: Tensor) -> None:
        """Add feature maps (c, h, w), and pixels (s, s) that show the object."""
        grid = max(tuple(layer.shape[-2:]) for layer in layers)
        self.clouds.append(cloud)
        self.layers.append(layers)
        self.foreground.append(functional.adaptive_max_pool2d(shown[None].float(), grid)[0] > 0)


@dataclass
class _Category:
    """Names of the clouds of one kind of object, features of each view, features of the photographs."""

    names: list[str] = field(default_factory=list)
    views: list[_OneView] = field(default_factory=list)
    photographs: _OneView = field(default_factory=_OneView)

    @property
    def compared(self) -> list[_OneView]:
        """Views, and photographs where there are two or more."""
        return [*self.views, self.photographs] if len(self.photographs.clouds) > 1 else self.views

    def scores(self, found: list[tuple[Tensor, Tensor]]) -> dict[str, ViewScores]:
        """Maps and scores of what was compared as those of each cloud, by its name."""
        views = found[: len(self.views)]
        maps, scores = (torch.stack(part, 1) for part in zip(*views, strict=True))
        own = {name: ViewScores(*each) for name, *each in zip(self.names, maps, scores, strict=True)}
        for photograph in found[len(self.views) :]:
            for cloud, each, score in zip(self.photographs.clouds, *photograph, strict=True):
                name = self.names[cloud]
                own[name] = replace(own[name], photograph_map=each, photograph_score=score)
        return own


class MutualScorer(nn.Module):
    """Scores a set of clouds without training: each view against the same view of all others of its kind.

    Photographs are compared with photographs, as one more view. Features are kept in half precision until the set is
    complete: for ``n`` clouds of ``v`` views, ``2 n v`` times the size of the feature maps in bytes.

    Args:
        extractor: gives the features; its finest layer is the grid of the maps.
        settings: how views are compared.
    """

    def __init__(self, extractor: FeatureExtractor, settings: MutualSettings | None = None) -> None:
        super().__init__()
        self.extractor = extractor
        self.settings = settings or MutualSettings()
        self._scores: dict[str, ViewScores] = {}
        self._content: object = None

    def collect(
        self,
        batches: Iterable[Any],
        device: torch.device,
        *,
        count: int | None = None,
        content: object = None,
        progress: bool = True,
    ) -> None:
        """Score all clouds of a set; ``view_scores`` hands the scores out.

        Args:
            batches: of ``CloudBatch``, each cloud with an image path of its own.
            device: where to compute.
            count: how many batches there are, for the bar; None if nobody knows.
            content: what says that two sets are the same, and need not be scored twice; None if nothing does.
            progress: show bars.

        Raises:
            ValueError: if there are fewer than two clouds of a kind, or one has no views, or another number of them.
        """
        if content is not None and content == self._content:
            return
        start = time.monotonic()
        scores: dict[str, ViewScores] = {}
        # a console of its own, as Lightning may show bars on rich's
        with Progress(console=Console(), disable=not progress, transient=True) as bar:
            found = self._features(bar.track(batches, count, description="Reading clouds"), device)
            _check_counts(found)
            compared = [view for category in found.values() for view in category.compared]
            steps = sum(len(view.layers[0]) for view in compared) * len(self.settings.neighborhoods)
            task = bar.add_task("Comparing views", total=steps)
            for category in found.values():
                scores |= category.scores(
                    [self._compare(view, device, lambda: bar.advance(task)) for view in category.compared]
                )
        self._scores, self._content = scores, content
        views = next(iter(found.values())).views
        logger.info(
            "Mutual scoring: %d clouds, %d views each, %d photographs, %.1f s.",
            len(scores), len(views), sum(len(each.photographs.clouds) for each in found.values()),
            time.monotonic() - start,
        )  # fmt: skip
        logger.warning(
            "Mutual scores are transductive: they depend on all %d clouds of this set, though not on their labels. "
            "Report them apart from those of models that see one cloud at a time.",
            len(scores),
        )

    def view_scores(self, batch: Any) -> list[ViewScores]:
        """Scores of clouds of the set.

        Args:
            batch: a ``CloudBatch`` with image paths.

        Raises:
            ValueError: if a cloud was not in the set.
        """
        paths = getattr(batch, "image_path", None) or [None] * len(batch.image)
        unknown = [str(path) for path in paths if path not in self._scores]
        if unknown:
            msg = f"Mutual scoring knows the {len(self._scores)} clouds that it compared, but not {unknown[0]}."
            raise ValueError(msg)
        return [_on_device(self._scores[path], batch.views.device) for path in paths]

    @torch.no_grad()
    def _features(self, batches: Iterable[Any], device: torch.device) -> dict[str, _Category]:
        """Features of a set, by the kind of object."""
        categories: dict[str, _Category] = {}
        for batch in batches:
            check_clouds(batch)
            kinds = batch.category or [""] * len(batch.image_path)
            for index, (path, kind) in enumerate(zip(batch.image_path, kinds, strict=True)):
                images, category = batch.views[index], categories.setdefault(kind, _Category())
                category.views = category.views or [_OneView() for _ in images]
                if len(images) != len(category.views):
                    before = len(category.views)
                    msg = f"{path} has {len(images)} views and those before it {before}: they cannot be compared."
                    raise ValueError(msg)
                cloud = len(category.names)
                category.names.append(path)
                shown = shown_pixels(batch.pixels[index], batch.visible[index], images.shape[-1])
                layers = self._read(images.to(device))
                for number, view in enumerate(category.views):
                    view.add(cloud, [layer[number] for layer in layers], shown[number])
                if self.settings.fuse_rgb and bool(batch.has_rgb[index]):
                    photograph = self._read(batch.image[index][None].to(device))
                    category.photographs.add(cloud, [layer[0] for layer in photograph], batch.valid[index])
        return categories

    def _read(self, images: Tensor) -> list[Tensor]:
        return [layer.half().cpu() for layer in self.extractor(images)]

    @torch.no_grad()
    def _compare(self, view: _OneView, device: torch.device, step: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Maps (n, p, p) and scores (n,) of one view of all clouds."""
        settings = self.settings
        layers = [torch.stack(layer).to(device) for layer in zip(*view.layers, strict=True)]
        foreground = torch.stack(view.foreground).to(device) if settings.foreground_only else None
        maps = mutual_maps(layers, foreground, neighborhoods=settings.neighborhoods, share=settings.share, step=step)
        if settings.centered:
            maps = above_median(maps)
        scores = maps.amax((1, 2))
        if settings.windows:
            scores = rescored(scores, layers[-1].float().mean((2, 3)), settings.windows)
        return maps.cpu(), scores.cpu()


def _on_device(scores: ViewScores, device: torch.device) -> ViewScores:
    photograph = (scores.photograph_map, scores.photograph_score)
    return ViewScores(
        scores.maps.to(device),
        scores.scores.to(device),
        *(part if part is None else part.to(device) for part in photograph),
    )


def _check_counts(found: dict[str, _Category]) -> None:
    few = {kind: len(category.names) for kind, category in found.items() if len(category.names) < 2}
    if few or not found:
        got = ", ".join(f"{count} of {kind!r}" for kind, count in few.items()) or 0
        msg = (
            "Mutual scoring compares clouds of one kind with each other and needs two or more, "
            f"got {got}: score a whole test set, or choose another scoring."
        )
        raise ValueError(msg)


def check_clouds(batch: Any) -> None:
    """Refuse what brings no clouds and views.

    Raises:
        ValueError: if a batch has none.
    """
    if getattr(batch, "views", None) is None or getattr(batch, "visible", None) is None:
        msg = (
            "PointAD scores clouds by their views, and these images bring none: use MVTec3DRendered, "
            "EyecandiesRendered or Real3DADRendered as data."
        )
        raise ValueError(msg)


def shown_pixels(pixels: Tensor, visible: Tensor, size: int) -> Tensor:
    """Pixels that show a point (v, size, size).

    Args:
        pixels: row and column of each point (v, n, 2).
        visible: whether the view shows the point (v, n).
        size: width and height of the views.
    """
    shown = torch.zeros(len(visible), size * size, dtype=torch.bool, device=visible.device)
    view, point = visible.nonzero().unbind(-1)
    row, column = pixels[view, point].long().unbind(-1)
    shown[view, row * size + column] = True
    return shown.reshape(-1, size, size)
