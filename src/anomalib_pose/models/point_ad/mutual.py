# SPDX-License-Identifier: Apache-2.0
"""Mutual scoring of a set of clouds: each view against the same view of all other clouds; see ``compare.mutual``."""

import itertools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.mutual import above_median, mutual_maps, rescored
from anomalib_pose.models.components.run_report import ReportMixin
from anomalib_pose.models.point_ad.image_scores import ImageScores
from anomalib_pose.models.point_ad.mutual_features import CategoryFeatures, ViewFeatures, read_features
from anomalib_pose.progress import show_progress, stage, track

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MutualSettings:
    """Options of the comparison.

    Args:
        neighborhoods: sizes of the squares of patches whose features are averaged.
        share: fraction of the other clouds that a patch is compared with: the most similar ones.
        windows: numbers of similar views that a view's score is averaged over, itself included; empty for no average.
        foreground_only: leave out patches that show no point of the cloud.
        centered: subtract the median of its view from the score of a patch; see ``above_median``.
        fuse_rgb: compare photographs too, where clouds have one.

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
        """Check the numbers before any file is read."""
        if not self.neighborhoods or any(size < 1 or size % 2 == 0 for size in self.neighborhoods):
            msg = f"neighbourhoods should be one or more odd numbers of patches, got {self.neighborhoods}."
            raise ValueError(msg)
        if not 0 < self.share <= 1:
            msg = f"share should be in (0, 1], got {self.share}."
            raise ValueError(msg)
        if any(window < 1 for window in self.windows):
            msg = f"windows should be numbers of views, 1 or more, got {self.windows}."
            raise ValueError(msg)


class MutualScorer(nn.Module):
    """Scores a set of clouds without training: each view against the same view of all other clouds of its category.

    Photographs are compared with photographs, as one more view. Features stay in main memory in half precision until
    the set is complete: for n clouds of v views, ``2 n v`` times the size of the feature maps in bytes.

    Args:
        extractor: computes the features; its finest layer is the grid of the maps.
        settings: options of the comparison.
    """

    def __init__(self, extractor: FeatureExtractor, settings: MutualSettings | None = None) -> None:
        super().__init__()
        self.extractor = extractor
        self.settings = settings or MutualSettings()
        self._scores: dict[str, ImageScores] = {}
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
        """Score all clouds of a set. ``score_images`` then returns the scores.

        Args:
            batches: batches of clouds (``CloudBatch``); each cloud has an image path of its own.
            device: device of the computation.
            count: number of batches, for the progress bar; None if unknown.
            content: identifier of the set. A set with the identifier of the last one is not scored again. None if
                unknown.
            progress: show progress bars.

        Raises:
            ValueError: if a category has fewer than two clouds, or a cloud has no views or another number of views.
        """
        if content is not None and content == self._content:
            return
        start = time.monotonic()
        scores: dict[str, ImageScores] = {}
        with show_progress(progress):
            tracked = track(batches, "Read clouds", count)
            categories = read_features(tracked, self.extractor, device, photographs=self.settings.fuse_rgb)
            _check_counts(categories)
            views = [view for category in categories.values() for view in category.comparable]
            steps = sum(len(view.layers[0]) for view in views) * len(self.settings.neighborhoods)
            with stage("Compare views", steps) as bar:
                for category in categories.values():
                    scores |= category.scores_by_name(
                        [self._compare(view, device, bar.advance) for view in category.comparable]
                    )
        self._scores, self._content = scores, content
        _log_set(categories, time.monotonic() - start)

    def score_images(self, batch: Any) -> list[ImageScores]:
        """Return the scores of clouds of the set.

        Args:
            batch: a ``CloudBatch`` with image paths.

        Raises:
            ValueError: if a cloud is not in the set.
        """
        paths = getattr(batch, "image_path", None) or [None] * len(batch.image)
        unknown = [str(path) for path in paths if path not in self._scores]
        if unknown:
            msg = (
                f"Mutual scoring compared {len(self._scores)} clouds, but not {unknown[0]}. Score a set that holds all "
                "of its clouds."
            )
            raise ValueError(msg)
        return [_to_device(self._scores[path], batch.views.device) for path in paths]

    @torch.no_grad()
    def _compare(self, view: ViewFeatures, device: torch.device, step: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Compute maps (n, p, p) and scores (n,) of one view of all clouds."""
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


def _to_device(scores: ImageScores, device: torch.device) -> ImageScores:
    """Move scores to a device."""
    return ImageScores(
        scores.view_maps.to(device),
        scores.view_scores.to(device),
        *(part if part is None else part.to(device) for part in (scores.photograph_map, scores.photograph_score)),
    )


def _check_counts(categories: dict[str, CategoryFeatures]) -> None:
    """Raise if there are no clouds, or a category has a single one."""
    few = {name: len(category.names) for name, category in categories.items() if len(category.names) < 2}
    if few or not categories:
        counts = ", ".join(f"{count} of {name!r}" for name, count in few.items()) or 0
        msg = (
            "Mutual scoring compares clouds of one category with each other and needs two or more, "
            f"got {counts}. Score a whole test set, or choose another scoring."
        )
        raise ValueError(msg)


def _log_set(categories: dict[str, CategoryFeatures], seconds: float) -> None:
    """Log the size of the set, and that its scores are transductive."""
    count = sum(len(category.names) for category in categories.values())
    views = len(next(iter(categories.values())).views)
    photographs = sum(len(category.photographs.clouds) for category in categories.values())
    logger.info("Mutual scoring: %d clouds, %d views each, %d photographs, %.1f s.", count, views, photographs, seconds)
    logger.warning(
        "Mutual scores are transductive: they depend on all %d clouds of this set, though not on their labels. "
        "Report them apart from those of models that see one cloud at a time.",
        count,
    )


class MutualScoringMixin(ReportMixin):
    """Lets a Lightning module whose ``self.model`` may be a ``MutualScorer`` score the whole set before a stage."""

    model: Any
    device: Any
    trainer: Any

    def on_validation_start(self) -> None:
        """Score the whole validation set, if scoring is mutual."""
        self._collect(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        """Score the whole test set, if scoring is mutual."""
        self._collect(self.trainer.test_dataloaders)

    def on_predict_start(self) -> None:
        """Score the whole prediction set, if scoring is mutual."""
        self._collect(self.trainer.predict_dataloaders)

    def _collect(self, loaders: Any) -> None:
        """Pass once over all data of a stage, also where the trainer is limited to a part of the data."""
        if not isinstance(self.model, MutualScorer):
            return
        # Lightning iterates its own loaders already, and the one of predictions cannot be iterated twice at a time
        loaders = [
            DataLoader(loader.dataset, 1, num_workers=loader.num_workers, collate_fn=loader.collate_fn)
            for loader in (loaders if isinstance(loaders, list | tuple) else [loaders])
        ]
        # by default the validation set is the test set, which is then scored once
        tables: list[Any] = [getattr(loader.dataset, "samples", None) for loader in loaders]
        identified = all(table is not None and {"sample", "source"} <= set(table) for table in tables)
        content = [table[["sample", "source"]].values.tolist() for table in tables] if identified else None
        with self.reported():
            self.model.collect(
                itertools.chain.from_iterable(loaders),
                self.device,
                count=sum(map(len, loaders)),
                content=content,
                progress=self.shows_progress,
            )
