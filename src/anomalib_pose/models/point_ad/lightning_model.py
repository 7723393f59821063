# SPDX-License-Identifier: Apache-2.0
"""PointAD as an anomalib model."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from anomalib import LearningType
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor, nn

from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.maps import upsample
from anomalib_pose.compare.query_content import is_finite, white_where
from anomalib_pose.models.components.checked_model import CheckedModelMixin
from anomalib_pose.models.point_ad.aggregation import object_scores
from anomalib_pose.models.point_ad.clip_scorers import (
    ClipSettings,
    ClipViewScorer,
    EnsembleScorer,
    PromptScorer,
    PromptSettings,
)
from anomalib_pose.models.point_ad.cloud_grid import check_clouds, grid_of
from anomalib_pose.models.point_ad.export import ImageScorerExportMixin
from anomalib_pose.models.point_ad.metrics import cloud_evaluator
from anomalib_pose.models.point_ad.mutual import MutualScorer, MutualScoringMixin, MutualSettings
from anomalib_pose.models.point_ad.outputs import CloudOutputMixin
from anomalib_pose.models.point_ad.prompt_checkpoint import PromptCheckpointMixin
from anomalib_pose.models.point_ad.training import PromptTrainingMixin
from anomalib_pose.models.point_ad.visualizer import CloudVisualizer
from anomalib_pose.progress import stage as show_stage
from anomalib_pose.visualization import register_panels

Scoring = Literal["prompts", "ensemble", "mutual"]
"""CLIP with learned prompts; CLIP with WinCLIP's prompts; comparison with the other clouds of the set."""


class PointAD(
    ImageScorerExportMixin,
    CloudOutputMixin,
    PromptCheckpointMixin,
    PromptTrainingMixin,
    MutualScoringMixin,
    CheckedModelMixin,
    AnomalibModule,
):
    """Zero-shot anomaly detection in point clouds from rendered views (Zhou et al., NeurIPS 2024).

    A cloud is rendered from several sides. Patches and whole views are scored. The scores of patches are averaged on
    the points that they show, and smoothed. A photograph of the cloud is scored as one more view. The data are one of
    ``MVTec3DRendered``, ``EyecandiesRendered`` and ``Real3DADRendered``.

    CLIP is read when the model is set up. It is not part of checkpoints, which hold only the prompts.

    Args:
        scoring: ``"prompts"``: CLIP and two texts that are learned on one labeled category and used for all other
            categories, as in the paper. ``"ensemble"``: CLIP and WinCLIP's texts, without training. ``"mutual"``:
            compare each view with the same view of all other clouds of the test set (Li et al., MuSc, ICLR 2024),
            without training; it needs the whole set, so report its figures separately.
        clip_model: name of a vision transformer in open_clip, or a .json file with a configuration in open_clip's form.
        pretrained: tag of open_clip, whose weights are downloaded once; or a file of weights; empty for random weights,
            for tests.
        vv_blocks: number of CLIP's last blocks with a second path of value-to-value attention; 0 for 19 of 24, or the
            same fraction of another number.
        prompt_path: file of published or own prompts (``anomalib-pose convert-checkpoint pointad``); it has its own
            sizes and is not trained. Empty to learn prompts.
        prompt_length: number of learned word embeddings in each text.
        deep_sets: number of blocks of the text tower, from the second on, with learned tokens at their input.
        deep_length: number of learned tokens in each of these blocks.
        learning_rate: learning rate of Adam.
        paper: compute the loss as published: the loss of objects averages views of different objects, and cells without
            a point count as points. Also round the learned tokens of blocks to half precision, as published. The
            default corrects all three.
        object_word: word for an object in the ensemble's texts; empty for the category of each cloud; ``object`` for
            any.
        seed: seed of the prompts' initial values.
        backbone: timm name of the network whose features mutual scoring compares.
        weights_path: file of the backbone's weights; empty to let timm download them once.
        layers: indices of the compared stages of the backbone; the finest stage is the grid of the patches.
        neighbourhoods: sizes of the squares of patches whose features are averaged. The paper of mutual scoring uses 1,
            3 and 5 with a transformer; patches of a convolutional network contain their neighbors already.
        share: fraction of the other clouds that a patch is compared with: the most similar ones.
        windows: numbers of similar views that a view's mutual score is averaged over, itself included; empty for no
            average.
        foreground_only: leave patches without a point of the cloud out of mutual scoring.
        centred: subtract the median of its view from the mutual score of a patch, so that an object in a rare pose
            does not look anomalous as a whole; the paper of mutual scoring does not.
        fuse_rgb: score the photograph too, where there is one.
        smoothing: standard deviation of the Gaussian that smooths maps, in cells; in mean distances of neighboring
            points where the cells of a cloud have no order. 0 for no smoothing.
        top_fraction: an object's score is the mean of its largest values, as many as this fraction of its points; 0 for
            the largest value, as in the paper.
        point_cloud_dir: folder for scored clouds as .ply; empty for the folder of results at a prediction, and for no
            files at a test.
        pre_processor: see ``AnomalibModule``. The networks normalize by themselves.
        post_processor: see ``AnomalibModule``.
        evaluator: see ``AnomalibModule``.
        visualizer: see ``AnomalibModule``.

    Raises:
        ValueError: if scoring, backbone or layers are unknown, or a number is out of its range.
    """

    data_kind = "clouds"

    def __init__(
        self,
        scoring: Scoring = "prompts",
        clip_model: str = "ViT-L-14-336",
        pretrained: str = "openai",
        vv_blocks: int = 0,
        prompt_path: str = "",
        prompt_length: int = 12,
        deep_sets: int = 8,
        deep_length: int = 4,
        learning_rate: float = 1e-3,
        paper: bool = False,
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
        clip = ClipSettings(clip_model, pretrained, vv_blocks, fuse_rgb, seed)
        # each scorer has score_images(batch), which returns the ImageScores of each cloud
        scorers: dict[str, Callable[[], Any]] = {
            "prompts": lambda: PromptScorer(
                clip, PromptSettings(prompt_path, prompt_length, deep_sets, deep_length, paper)
            ),
            "ensemble": lambda: EnsembleScorer(clip, object_word),
            "mutual": lambda: MutualScorer(
                FeatureExtractor(backbone, tuple(layers), weights_path=weights_path),
                MutualSettings(tuple(neighbourhoods), share, tuple(windows), foreground_only, centred, fuse_rgb),
            ),
        }
        if scoring not in get_args(Scoring):
            msg = f"scoring should be one of {', '.join(map(repr, get_args(Scoring)))}, got {scoring!r}."
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
        """One-class while prompts are trained, so that anomalib trains the model; else zero-shot."""
        trained = self.scoring == "prompts" and not self.prompt_path
        return LearningType.ONE_CLASS if trained else LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One device: mutual scoring needs the whole set, and training caches features. No validation beforehand."""
        return {"devices": 1, "num_sanity_val_steps": 0}

    def setup(self, stage: str) -> None:
        """Read CLIP, if the scoring needs it.

        Args:
            stage: Lightning's name of the stage that starts.
        """
        super().setup(stage)
        if isinstance(self.model, ClipViewScorer):
            with self.reported(), show_stage("Load CLIP"):
                self.model.load()

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return no transform: the data module renders clouds at their size, and cells refer to these pixels."""
        del image_size
        return PreProcessor()

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """Return anomalib's post-processor, with thresholds and ranges from validation."""
        return PostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Return the metrics of ``cloud_evaluator``."""
        return cloud_evaluator()

    @classmethod
    def configure_visualizer(cls) -> CloudVisualizer:
        """Return pictures of photograph, true mask, views with heat, colored cloud, and the map over the photograph."""
        register_panels()  # a model that is created by its class path may not be registered yet
        return CloudVisualizer()

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Score single images, as probabilities. ``PointADInferencer`` scores clouds.

        An image with NaN or infinity has the score 1.

        Args:
            batch: square RGB (B, 3, H, W) in [0, 1].
            args: not used.
            kwargs: not used.

        Raises:
            ValueError: if scoring is mutual, which cannot score single images, or prompts are not learned.
        """
        del args, kwargs
        scorer = self.clip_scorer()
        with torch.no_grad():
            decided = is_finite(batch)
            scores = scorer.scorer(white_where(~decided, batch), None, scorer.direction().to(batch.device))
        maps = upsample(scores.view_maps, (batch.shape[-2], batch.shape[-1]))
        return InferenceBatch(pred_score=torch.where(decided, scores.view_scores, 1.0), anomaly_map=maps[:, None])

    def _step(self, batch: Batch) -> Batch:
        """Add maps, scores of points and scores of objects to a batch of clouds."""
        check_clouds(batch)
        results = [
            object_scores(scores, grid_of(batch, index), self.smoothing, self.top_fraction)
            for index, scores in enumerate(self.model.score_images(batch))
        ]
        maps = torch.stack([result.point_map for result in results]).to(self.device)
        scores = torch.stack([result.score for result in results]).to(self.device)
        batch.update(pred_score=scores, anomaly_map=maps[:, None], point_scores=maps, object_score=scores)
        return batch

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of clouds."""
        del args, kwargs
        return self._step(batch)

    def test_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of clouds; add the row ``transductive`` to the results if scoring is mutual."""
        del args, kwargs
        if isinstance(self.model, MutualScorer):
            self.log("transductive", 1.0, on_step=False, on_epoch=True, batch_size=len(batch.image))
        return self._step(batch)

    def predict_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of clouds."""
        del args, kwargs
        return self._step(batch)
