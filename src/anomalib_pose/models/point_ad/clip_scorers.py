# SPDX-License-Identifier: Apache-2.0
"""Scores of views by CLIP: with learned prompts, or with WinCLIP's prompts and without training."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anomalib_pose.models.point_ad.checkpoint import Prompts, load_prompts, prompts_of, read_prompts
from anomalib_pose.models.point_ad.clip import Clip, load_clip
from anomalib_pose.models.point_ad.image_scores import ImageScores
from anomalib_pose.models.point_ad.losses import HybridLoss
from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.scorer import ClipScorer
from anomalib_pose.models.point_ad.text import direction, ensemble_features
from anomalib_pose.models.point_ad.training import FeatureCache, cloud_targets, prompt_loss
from anomalib_pose.progress import stage


@dataclass(frozen=True)
class ClipSettings:
    """Choice of CLIP, and of the images that it scores.

    Args:
        model: see ``load_clip``.
        pretrained: see ``load_clip``; empty for random weights.
        vv_blocks: number of last blocks with value-to-value attention; 0 for 19 of 24, or the same fraction.
        fuse_rgb: score photographs too, where a cloud has one.
        seed: seed of random weights and of the prompts' initial values.

    Raises:
        ValueError: if vv_blocks is negative.
    """

    model: str = "ViT-L-14-336"
    pretrained: str = "openai"
    vv_blocks: int = 0
    fuse_rgb: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the number before any file is read."""
        if self.vv_blocks < 0:
            msg = f"vv_blocks should be 0 or more, got {self.vv_blocks}."
            raise ValueError(msg)


@dataclass(frozen=True)
class PromptSettings:
    """Source and sizes of the prompts; see ``PromptLearner`` and ``hybrid_loss``.

    Args:
        path: file of learned prompts, which has its own sizes; empty to learn prompts.
        prompt_length: number of learned embeddings in each text.
        deep_sets: number of blocks of the text tower with learned tokens.
        deep_length: number of learned tokens in each of these blocks.
        paper: compute the loss and round the deep tokens as published.
    """

    path: str = ""
    prompt_length: int = 12
    deep_sets: int = 8
    deep_length: int = 4
    paper: bool = False


class ClipViewScorer(nn.Module):
    """Scores views by CLIP. CLIP is read by ``load``, or when it is first needed.

    Args:
        settings: choice of CLIP.
    """

    clip: Clip | None

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__()
        self.settings = settings
        self.clip = None
        self._directions: dict[str, Tensor] = {}

    def load(self) -> Clip:
        """Return CLIP; read it at the first call. For errors see ``load_clip``."""
        if self.clip is None:
            settings = self.settings
            self.clip = load_clip(settings.model, settings.pretrained or None, seed=settings.seed)
        return self.clip

    @property
    def scorer(self) -> ClipScorer:
        """CLIP's image tower with the second, value-to-value path."""
        return ClipScorer(self.load().vision, self.settings.vv_blocks or None)

    def word(self, category: str) -> str:
        """Return the word for an object in the texts.

        Args:
            category: category of the object; empty for any object.
        """
        raise NotImplementedError

    def text_features(self, word: str) -> Tensor:
        """Compute unit features (2, d) of the normal and of the abnormal text.

        Args:
            word: word for the object in the texts.
        """
        raise NotImplementedError

    @torch.no_grad()
    def direction(self, category: str = "") -> Tensor:
        """Return the vector (d,) that scores objects of a category; see ``text.direction``.

        Args:
            category: category of the object; empty for any object.
        """
        word = self.word(category)
        if word not in self._directions:
            with stage("Encode texts"):
                self._directions[word] = direction(self.text_features(word))
        return self._directions[word]

    def score_images(self, batch: Any) -> list[ImageScores]:
        """Score the images of each cloud of a batch.

        Args:
            batch: a ``CloudBatch``.
        """
        scorer = self.scorer
        categories = getattr(batch, "category", None) or [""] * len(batch.views)
        scores = []
        for index, (views, category) in enumerate(zip(batch.views, categories, strict=True)):
            photograph = batch.image[index] if self.settings.fuse_rgb and bool(batch.has_rgb[index]) else None
            scores.append(scorer(views, photograph, self.direction(category).to(views.device)))
        return scores


class EnsembleScorer(ClipViewScorer):
    """Scores views by WinCLIP's prompts, without training.

    Args:
        settings: choice of CLIP.
        object_word: word for objects in the texts; empty for the category of each cloud.
    """

    def __init__(self, settings: ClipSettings, object_word: str = "") -> None:
        super().__init__(settings)
        self.object_word = object_word

    def word(self, category: str) -> str:
        """Return ``object_word``, else the category, else "object".

        Args:
            category: category of the object; empty for any object.
        """
        return self.object_word or category or "object"

    def text_features(self, word: str) -> Tensor:
        """Compute unit features (2, d) of the normal and of the abnormal texts.

        Args:
            word: word for the object in the texts.
        """
        return ensemble_features(self.load().text, word)


class PromptScorer(ClipViewScorer):
    """Scores views by prompts that are learned, or read from a file together with CLIP.

    Args:
        settings: choice of CLIP.
        prompts: source and sizes of the prompts.
    """

    prompts: PromptLearner | None

    def __init__(self, settings: ClipSettings, prompts: PromptSettings | None = None) -> None:
        super().__init__(settings)
        self.prompt_settings = prompts or PromptSettings()
        self.prompts = None
        self.learned = False
        self._adopted: Prompts | None = None
        self._cache: FeatureCache | None = None

    def load(self) -> Clip:
        """Return CLIP; read CLIP and prompts at the first call.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if sizes or files do not fit.
        """
        return self._ready()[0]

    def adopt(self, prompts: Prompts) -> None:
        """Continue with learned prompts in place of the current ones.

        Args:
            prompts: learned prompts; they are checked as soon as CLIP is read.

        Raises:
            ValueError: if the prompts were learned for another CLIP.
        """
        self._adopted, self.prompts = Prompts(*(part.cpu() for part in prompts)), None
        self._directions.clear()
        if self.clip is not None:
            self.load()

    def learned_prompts(self) -> Prompts | None:
        """Return the prompts to save; None if no prompts are learned."""
        if self.prompts is None or self.clip is None:
            return self._adopted
        return prompts_of(self.prompts, self.clip.text) if self.learned else None

    def loss(self, batch: Any) -> HybridLoss:
        """Compute the loss of a training step. The features of each cloud are computed once and cached.

        Args:
            batch: a ``CloudBatch`` with labels, masks and paths.

        Raises:
            ValueError: if labels, masks or pixels are missing.
        """
        clip, prompts = self._ready()
        targets = cloud_targets(batch)
        self._cache = self._cache or FeatureCache(self.scorer)
        features = self._cache.of(batch.image_path, batch.views)
        self._directions.clear()
        self.learned = True
        return prompt_loss(clip.text, prompts, features, targets, paper=self.prompt_settings.paper)

    def forget_features(self) -> None:
        """Free the memory of the cached features."""
        self._cache = None

    def word(self, category: str) -> str:
        """Return an empty word: learned prompts do not name the object.

        Args:
            category: not used.
        """
        del category
        return ""

    def text_features(self, word: str) -> Tensor:
        """Compute unit features (2, d) of the normal and of the abnormal text.

        Args:
            word: not used.

        Raises:
            ValueError: if the prompts are not learned yet.
        """
        del word
        clip, prompts = self._ready()
        if not self.learned:
            msg = (
                "The prompts are not learned yet. Train first and give --ckpt_path, give --model.prompt_path, or use "
                "--model.scoring ensemble, which needs no training."
            )
            raise ValueError(msg)
        return prompts(clip.text)

    def _ready(self) -> tuple[Clip, PromptLearner]:
        """Return CLIP and the prompts; read or create them at the first call."""
        clip = super().load()
        if self.prompts is None:
            learned = self._adopted
            if learned is None and self.prompt_settings.path:
                learned = read_prompts(self.prompt_settings.path)
            self.prompts = self._make_prompts(clip, learned)
            self.learned = learned is not None
        return clip, self.prompts

    def _make_prompts(self, clip: Clip, learned: Prompts | None) -> PromptLearner:
        """Create prompts with the sizes of the settings, or with sizes and values of learned prompts."""
        settings = self.prompt_settings
        sizes = (settings.prompt_length, settings.deep_sets, settings.deep_length)
        if learned is not None:
            sizes = (len(learned.normal), *learned.deep.shape[:2])
        prompts = PromptLearner(clip.text, *sizes, paper=settings.paper, seed=self.settings.seed)
        if learned is not None:
            load_prompts(prompts, learned, clip.text)
        return prompts.to(clip.text.positional_embedding.device)
