# SPDX-License-Identifier: Apache-2.0
"""PointAD as an anomalib model: scores of clouds from their views, points and pixels."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib import metrics as stock
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import Visualizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.models.components.metrics import AUPR, AUROC, F1Score
from anomalib_pose.models.point_ad.aggregation import object_scores
from anomalib_pose.models.point_ad.drawing import write_scored_cloud
from anomalib_pose.models.point_ad.metrics import ForegroundAUROC
from anomalib_pose.models.point_ad.mutual import MutualScorer, MutualSettings, check_clouds
from anomalib_pose.models.point_ad.visualizer import CloudVisualizer, grid_of
from anomalib_pose.visualization import register_panels


class PointAD(AnomalibModule):
    """Anomalies of clouds, found in drawn views of them (Zhou et al., NeurIPS 2024).

    A cloud is drawn from several sides; patches and views are scored, patch scores are averaged onto the points that
    they show, and smoothed. A photograph counts as one more view. The data are one of ``MVTec3DRendered``,
    ``EyecandiesRendered`` and ``Real3DADRendered``.

    Args:
        scoring: ``"mutual"``: compare each view with the same view of all other clouds of the test set (Li et al.,
            MuSc, ICLR 2024), which trains nothing but needs the whole set, so that its figures are to be kept apart.
        backbone: timm name of the network whose features mutual scoring compares.
        weights_path: file with the backbone's weights; empty to let timm download them once.
        layers: indices of the backbone's stages that are compared; the finest one is the grid of the patches.
        neighbourhoods: sizes of the squares of patches whose features are averaged. The paper of mutual scoring takes
            1, 3 and 5 with a transformer; patches of a convolutional network have seen their neighbours already.
        share: share of the other clouds, those most like it, that a patch is compared with.
        windows: numbers of similar views that a view's mutual score is averaged over, itself included; empty for none.
        foreground_only: leave patches without a point of the cloud out of mutual scoring.
        centred: score a patch by what it is above the median of its view, so that an object in a rare pose is not
            taken for anomalous as a whole; the paper of mutual scoring does not.
        fuse_rgb: let the photograph count, where there is one.
        smoothing: width of the Gaussian that smooths maps, in cells; in mean distances of neighbouring points where
            the cells of a cloud have no order. 0 for none.
        top_fraction: judge an object by the mean of this share of its largest values; 0 for the largest, as the paper.
        point_cloud_dir: folder that scored clouds are written to as .ply; empty for the results' folder when
            predicting, and for none when testing.
        pre_processor: see ``AnomalibModule``. The networks normalise by themselves.
        post_processor: see ``AnomalibModule``.
        evaluator: see ``AnomalibModule``.
        visualizer: see ``AnomalibModule``.

    Raises:
        ValueError: if there is no such scoring, backbone or layer, or a number is out of its range.
    """

    def __init__(
        self,
        scoring: str = "prompts",
        backbone: str = "mobilenetv2_100.ra_in1k",
        weights_path: str = "",
        layers: tuple[int, ...] = (2, 3),
        neighbourhoods: tuple[int, ...] = (1,),
        share: float = 0.3,
        windows: tuple[int, ...] = (),
        foreground_only: bool = True,
        centred: bool = True,
        fuse_rgb: bool = True,
        smoothing: float = 4.0,
        top_fraction: float = 0.0,
        point_cloud_dir: str = "",
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        # How views are scored: each makes a module with view_scores(batch), which gives ViewScores of each cloud.
        scorers: dict[str, Callable[[], Any]] = {
            "mutual": lambda: MutualScorer(
                FeatureExtractor(backbone, tuple(layers), weights_path=weights_path),
                MutualSettings(tuple(neighbourhoods), share, tuple(windows), foreground_only, centred, fuse_rgb),
            ),
        }
        if scoring not in scorers:
            msg = f"scoring should be one of {', '.join(map(repr, scorers))}, got {scoring!r}."
            raise ValueError(msg)
        if smoothing < 0 or not 0 <= top_fraction <= 1:
            msg = f"smoothing should be 0 or more and top_fraction in [0, 1], got {smoothing} and {top_fraction}."
            raise ValueError(msg)
        self.scoring = scoring
        self.smoothing = smoothing
        self.top_fraction = top_fraction
        self.point_cloud_dir = point_cloud_dir
        self.model = scorers[scoring]()

    @property
    def learning_type(self) -> LearningType:
        """Mutual scoring learns nothing."""
        return LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One device: each has to see the whole set."""
        return {"devices": 1, "num_sanity_val_steps": 0}

    @staticmethod
    def configure_optimizers() -> None:
        """Nothing is trained."""

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """No transform: the datamodule draws clouds at their size, and cells have to keep their pixels."""
        del image_size
        return PreProcessor()

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """anomalib's, with thresholds and ranges from validation."""
        return PostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Of objects AUROC and average precision, of cells AUROC over all and over those with a point, and AUPRO.

        They read the scores before normalisation, which cuts off what is far from the threshold: what ties then counts
        for neither side.
        """
        image, pixel = ["object_score", "gt_label"], ["point_scores", "gt_mask"]
        return Evaluator(
            test_metrics=[
                AUROC(fields=image, prefix="image_"),
                AUPR(fields=image, prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
                stock.AUROC(fields=pixel, prefix="pixel_", strict=False),
                ForegroundAUROC(prefix="pixel_", strict=False),
                stock.AUPRO(fields=pixel, prefix="pixel_", strict=False),
                stock.F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
            ]
        )

    @classmethod
    def configure_visualizer(cls) -> CloudVisualizer:
        """Photograph, true mask, views with heat, coloured cloud, and the map over the photograph."""
        register_panels()  # a dotted class path comes here without the plug-in
        return CloudVisualizer()

    @property
    def shows_progress(self) -> bool:
        """Whether the trainer shows progress bars, so that the model may show its own."""
        return getattr(self.trainer, "progress_bar_callback", None) is not None

    def on_validation_start(self) -> None:
        """Score the whole set, if scores depend on it."""
        self._collect(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        """Score the whole set, if scores depend on it."""
        self._collect(self.trainer.test_dataloaders)

    def on_predict_start(self) -> None:
        """Score the whole set, if scores depend on it."""
        self._collect(self.trainer.predict_dataloaders)

    def _collect(self, loaders: Any) -> None:
        """One pass over the stage's data, all of them whatever part of them the trainer will take."""
        if not isinstance(self.model, MutualScorer):
            return
        # Lightning has begun to iterate its loaders, and that of predictions cannot be iterated twice at a time
        loaders = [
            DataLoader(loader.dataset, 1, num_workers=loader.num_workers, collate_fn=loader.collate_fn)
            for loader in (loaders if isinstance(loaders, list | tuple) else [loaders])
        ]
        # a validation set that is the test set, as it is by default, is scored once
        tables: list[Any] = [getattr(loader.dataset, "samples", None) for loader in loaders]
        known = all(table is not None and {"sample", "source"} <= set(table) for table in tables)
        content = [table[["sample", "source"]].values.tolist() for table in tables] if known else None
        self.model.collect(
            itertools.chain.from_iterable(loaders),
            self.device,
            count=sum(map(len, loaders)),
            content=content,
            progress=self.shows_progress,
        )

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Scores of single images, which mutual scoring cannot give.

        Args:
            batch: RGB (B, 3, H, W) in [0, 1].
            args: not used.
            kwargs: not used.

        Raises:
            ValueError: always.
        """
        del batch, args, kwargs
        msg = (
            "Mutual scoring compares the views of a whole set of clouds: there is no graph of a single image that "
            "could be called or exported."
        )
        raise ValueError(msg)

    def _step(self, batch: Batch) -> Batch:
        """The batch with maps, scores of points and scores of objects."""
        check_clouds(batch)
        found = [
            object_scores(views, grid_of(batch, index), self.smoothing, self.top_fraction)
            for index, views in enumerate(self.model.view_scores(batch))
        ]
        maps = torch.stack([each.point_map for each in found]).to(self.device)
        scores = torch.stack([each.score for each in found]).to(self.device)
        batch.update(
            pred_score=scores,
            anomaly_map=maps[:, None],
            point_scores=maps,
            object_score=scores,
        )
        return batch

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of clouds."""
        del args, kwargs
        return self._step(batch)

    def test_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of clouds; say in the results if the scores are transductive."""
        del args, kwargs
        if isinstance(self.model, MutualScorer):
            self.log("transductive", 1.0, on_step=False, on_epoch=True, batch_size=len(batch.image))
        return self._step(batch)

    def predict_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of clouds."""
        del args, kwargs
        return self._step(batch)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Write clouds, if a folder is given; scores are normalised by now.

        Args:
            outputs: not used.
            batch: a ``CloudBatch`` with maps.
            batch_idx: not used.
            dataloader_idx: not used.
        """
        del outputs, batch_idx, dataloader_idx
        if self.point_cloud_dir:
            self._write_clouds(batch, Path(self.point_cloud_dir))

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Write clouds to the given folder or beside the other results; scores are normalised by now.

        Args:
            outputs: not used.
            batch: a ``CloudBatch`` with maps.
            batch_idx: not used.
            dataloader_idx: not used.
        """
        del outputs, batch_idx, dataloader_idx
        self._write_clouds(batch, Path(self.point_cloud_dir or Path(self.trainer.default_root_dir) / "point_clouds"))

    def _write_clouds(self, batch: Any, folder: Path) -> None:
        """One .ply for each cloud, named as its picture."""
        datamodule = getattr(self.trainer, "datamodule", None)
        place = {name: getattr(datamodule, name, None) for name in ("name", "category")}
        for index, values in enumerate(batch.anomaly_map.reshape(batch.valid.shape)):
            path = generate_output_filename(batch.image_path[index], folder, place["name"], place["category"])
            valid = batch.valid[index]
            write_scored_cloud(path.with_suffix(".ply"), batch.points[index][valid], values[valid])
