# SPDX-License-Identifier: Apache-2.0
"""PointAD as an anomalib model: scores of clouds from their views, points and pixels."""

import itertools
import logging
from collections.abc import Callable
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.maps import upsample
from anomalib_pose.models.point_ad.aggregation import object_scores
from anomalib_pose.models.point_ad.checkpoint import Prompts
from anomalib_pose.models.point_ad.clip_scorers import (
    ClipSettings,
    ClipViewScorer,
    EnsembleScorer,
    PromptScorer,
    PromptSettings,
)
from anomalib_pose.models.point_ad.export import ViewExportMixin
from anomalib_pose.models.point_ad.metrics import cloud_evaluator
from anomalib_pose.models.point_ad.mutual import MutualScorer, MutualSettings, check_clouds
from anomalib_pose.models.point_ad.outputs import CloudOutputMixin
from anomalib_pose.models.point_ad.training import prompt_optimizer
from anomalib_pose.models.point_ad.visualizer import CloudVisualizer, grid_of
from anomalib_pose.visualization import register_panels

logger = logging.getLogger(__name__)

_NETWORK = "model."
"""What the names of the scorer's weights begin with."""
_PROMPTS = "point_ad_prompts"
"""Where a checkpoint holds the prompts."""


class PointAD(ViewExportMixin, CloudOutputMixin, AnomalibModule):
    """Anomalies of clouds, found in drawn views of them (Zhou et al., NeurIPS 2024).

    A cloud is drawn from several sides; patches and views are scored, patch scores are averaged onto the points that
    they show, and smoothed. A photograph counts as one more view. The data are one of ``MVTec3DRendered``,
    ``EyecandiesRendered`` and ``Real3DADRendered``.

    CLIP is read when the model is set up, and is no part of checkpoints, which hold the prompts alone.

    Args:
        scoring: ``"prompts"``: by CLIP and two texts that are learned on one labeled category and serve all others, as
            the paper. ``"ensemble"``: by CLIP and WinCLIP's texts, which trains nothing. ``"mutual"``: compare each
            view with the same view of all other clouds of the test set (Li et al., MuSc, ICLR 2024), which trains
            nothing but needs the whole set, so that its figures are to be kept apart.
        clip_model: name of a vision transformer in open_clip, or a .json file with a configuration like open_clip's.
        pretrained: tag of open_clip, whose weights are downloaded once; or a file of weights; empty for random ones,
            which only tests can use.
        vv_blocks: number of CLIP's last blocks in whose second path values attend to values; 0 for 19 of 24, or the
            same share of another number.
        prompt_path: published or own prompts (``anomalib-pose convert-checkpoint pointad``), whose sizes then count;
            nothing is trained then. Empty to learn them.
        prompt_length: learned words of each text.
        deep_sets: blocks of the text tower, from the second on, that read learned tokens.
        deep_length: learned tokens that each of these blocks reads.
        learning_rate: of Adam.
        paper_losses: compute the losses as published: the loss of objects averages views of different ones, and cells
            without a point count as points.
        half_precision_prompts: let the tokens of blocks pass through half precision, as published.
        object_word: what the ensemble's texts call an object; empty for each cloud's category. ``object`` for any.
        seed: of the prompts' first values.
        backbone: timm name of the network whose features mutual scoring compares.
        weights_path: file with the backbone's weights; empty to let timm download them once.
        layers: indices of the backbone's stages that are compared; the finest one is the grid of the patches.
        neighbourhoods: sizes of the squares of patches whose features are averaged. The paper of mutual scoring takes
            1, 3 and 5 with a transformer; patches of a convolutional network have seen their neighbors already.
        share: share of the other clouds, those most like it, that a patch is compared with.
        windows: numbers of similar views that a view's mutual score is averaged over, itself included; empty for none.
        foreground_only: leave patches without a point of the cloud out of mutual scoring.
        centred: score a patch by what it is above the median of its view, so that an object in a rare pose is not
            taken for anomalous as a whole; the paper of mutual scoring does not.
        fuse_rgb: let the photograph count, where there is one.
        smoothing: width of the Gaussian that smooths maps, in cells; in mean distances of neighboring points where
            the cells of a cloud have no order. 0 for none.
        top_fraction: judge an object by the mean of this share of its largest values; 0 for the largest, as the paper.
        point_cloud_dir: folder that scored clouds are written to as .ply; empty for the results' folder when
            predicting, and for none when testing.
        pre_processor: see ``AnomalibModule``. The networks normalize by themselves.
        post_processor: see ``AnomalibModule``.
        evaluator: see ``AnomalibModule``.
        visualizer: see ``AnomalibModule``.

    Raises:
        ValueError: if there is no such scoring, backbone or layer, or a number is out of its range.
    """

    def __init__(
        self,
        scoring: str = "prompts",
        clip_model: str = "ViT-L-14-336",
        pretrained: str = "openai",
        vv_blocks: int = 0,
        prompt_path: str = "",
        prompt_length: int = 12,
        deep_sets: int = 8,
        deep_length: int = 4,
        learning_rate: float = 1e-3,
        paper_losses: bool = False,
        half_precision_prompts: bool = False,
        object_word: str = "",
        seed: int = 0,
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
        clip = ClipSettings(clip_model, pretrained, vv_blocks, fuse_rgb, seed)
        scorers: dict[str, Callable[[], Any]] = {
            "prompts": lambda: PromptScorer(
                clip,
                PromptSettings(
                    prompt_path, prompt_length, deep_sets, deep_length, half_precision_prompts, paper_losses
                ),
            ),
            "ensemble": lambda: EnsembleScorer(clip, object_word),
            "mutual": lambda: MutualScorer(
                FeatureExtractor(backbone, tuple(layers), weights_path=weights_path),
                MutualSettings(tuple(neighbourhoods), share, tuple(windows), foreground_only, centred, fuse_rgb),
            ),
        }
        if scoring not in scorers:
            msg = f"scoring should be one of {', '.join(map(repr, scorers))}, got {scoring!r}."
            raise ValueError(msg)
        if learning_rate <= 0:
            msg = f"learning_rate should be above 0, got {learning_rate}."
            raise ValueError(msg)
        if smoothing < 0 or not 0 <= top_fraction <= 1:
            msg = f"smoothing should be 0 or more and top_fraction in [0, 1], got {smoothing} and {top_fraction}."
            raise ValueError(msg)
        self.scoring = scoring
        self.prompt_path = prompt_path
        self.learning_rate = learning_rate
        self.smoothing = smoothing
        self.top_fraction = top_fraction
        self.point_cloud_dir = point_cloud_dir
        self.fuse_rgb = fuse_rgb
        self.model = scorers[scoring]()

    @property
    def learning_type(self) -> LearningType:
        """Prompts are trained, which is all that anomalib asks by this; nothing is learned where there are some."""
        trained = self.scoring == "prompts" and not self.prompt_path
        return LearningType.ONE_CLASS if trained else LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One device: mutual scoring has to see the whole set, and training keeps the features that it has seen."""
        return {"devices": 1, "num_sanity_val_steps": 0}

    def setup(self, stage: str) -> None:
        """Read CLIP, if it is needed.

        Args:
            stage: is not used.
        """
        del stage
        if isinstance(self.model, ClipViewScorer):
            self.model.load()

    def configure_optimizers(self) -> Optimizer | None:
        """The paper's Adam for prompts, and nothing else."""
        prompts = getattr(self.model, "prompts", None)
        return None if prompts is None else prompt_optimizer(prompts, self.learning_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep prompts in the place of CLIP, which everybody has.

        Args:
            checkpoint: of Lightning; changed.
        """
        super().on_save_checkpoint(checkpoint)
        if not isinstance(self.model, ClipViewScorer):
            return
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in weights if not name.startswith(_NETWORK)}
        prompts = self.model.learned_prompts() if isinstance(self.model, PromptScorer) else None
        if prompts is not None:
            checkpoint[_PROMPTS] = prompts._asdict()
            # who loads the checkpoint does not need the file
            checkpoint["hyper_parameters"]["prompt_path"] = ""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take prompts up; CLIP stays as it is.

        Args:
            checkpoint: of Lightning; changed.

        Raises:
            ValueError: if it is of another scoring, or its prompts were learned for another CLIP.
        """
        super().on_load_checkpoint(checkpoint)
        theirs = checkpoint.get("hyper_parameters", {}).get("scoring", self.scoring)
        if theirs != self.scoring:
            msg = f"The checkpoint is of scoring {theirs!r}, this model's is {self.scoring!r}: give --model.scoring."
            raise ValueError(msg)
        if not isinstance(self.model, ClipViewScorer):
            return
        if isinstance(self.model, PromptScorer) and _PROMPTS in checkpoint:
            self.model.adopt(Prompts(**checkpoint[_PROMPTS]))
        own = {name: value for name, value in self.state_dict().items() if name.startswith(_NETWORK)}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **own}

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
        """See ``cloud_evaluator``."""
        return cloud_evaluator()

    @classmethod
    def configure_visualizer(cls) -> CloudVisualizer:
        """Photograph, true mask, views with heat, colored cloud, and the map over the photograph."""
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
        """Scores and maps of single images, as probabilities; those of clouds need ``PointADInferencer``.

        Args:
            batch: square RGB (B, 3, H, W) in [0, 1].
            args: not used.
            kwargs: not used.

        Raises:
            ValueError: for mutual scoring, which knows no single images, and if prompts are not learned.
        """
        del args, kwargs
        scorer = self.clip_scorer()
        with torch.no_grad():
            found = scorer.scorer(batch, None, scorer.direction().to(batch.device))
        maps = upsample(found.maps, (batch.shape[-2], batch.shape[-1]))
        return InferenceBatch(pred_score=found.scores, anomaly_map=maps[:, None])

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """Loss of the prompts on one batch of clouds."""
        del args, kwargs
        check_clouds(batch)
        found = self.model.loss(batch)
        self.log("train_loss", found.total.detach(), on_epoch=True, prog_bar=True, batch_size=len(batch.image))
        for name, term in found._asdict().items():
            self.log(f"train_{name}_loss", term.detach(), on_epoch=True, batch_size=len(batch.image))
        return found.total

    def on_train_start(self) -> None:
        """Say why the first epoch is slow, and see to it that the last one is kept.

        The host writes a checkpoint when it validates. What was learned since the last validation would be lost.
        """
        logger.info("CLIP's features are computed once a view, in the first epoch, which takes the longest.")
        every, last = self.trainer.check_val_every_n_epoch, self.trainer.max_epochs or 0
        if every and last > 0 and last % every:
            logger.warning("Validating after %d epochs, not every %d: the checkpoint is written then.", last, every)
            self.trainer.check_val_every_n_epoch = last

    def on_train_end(self) -> None:
        """Free the memory of what only training needs."""
        self.model.forget_features()

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
