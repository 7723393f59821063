# SPDX-License-Identifier: Apache-2.0
"""The two ways to score views by CLIP: learned prompts, and WinCLIP's prompts without training."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anomalib_pose.models.point_ad.checkpoint import Prompts, load_prompts, prompts_of, read_prompts
from anomalib_pose.models.point_ad.clip import Clip, load_clip
from anomalib_pose.models.point_ad.losses import HybridLoss
from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.scorer import ClipScorer
from anomalib_pose.models.point_ad.text import direction, ensemble_features
from anomalib_pose.models.point_ad.training import FeatureCache, cloud_targets, prompt_loss
from anomalib_pose.models.point_ad.types import ViewScores


@dataclass(frozen=True)
class ClipSettings:
    """Which CLIP looks at the images.

    Args:
        model: see ``load_clip``.
        pretrained: see ``load_clip``; empty for random weights.
        vv_blocks: number of last blocks whose values attend to values; 0 for 19 of 24, or the same share.
        fuse_rgb: look at photographs too, where there are some.
        seed: of what is random.

    Raises:
        ValueError: if vv_blocks is negative.
    """

    model: str = "ViT-L-14-336"
    pretrained: str = "openai"
    vv_blocks: int = 0
    fuse_rgb: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the number before anything is read."""
        if self.vv_blocks < 0:
            msg = f"vv_blocks should be 0 or more, got {self.vv_blocks}."
            raise ValueError(msg)


@dataclass(frozen=True)
class PromptSettings:
    """What is learned, and how; see ``PromptLearner`` and ``hybrid_loss``.

    Args:
        path: file with learned prompts, whose sizes then count; empty to learn them.
        prompt_length: learned words of each text.
        deep_sets: blocks of the text tower that read learned tokens.
        deep_length: learned tokens that each of them reads.
        half_precision_prompts: let these tokens pass through half precision.
        paper_losses: compute the loss as published.
    """

    path: str = ""
    prompt_length: int = 12
    deep_sets: int = 8
    deep_length: int = 4
    half_precision_prompts: bool = False
    paper_losses: bool = False


class ClipViewScorer(nn.Module):
    """Scores views by CLIP, which is read when it is first needed, or by ``load``.

    Args:
        settings: which CLIP.
    """

    clip: Clip | None

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__()
        self.settings = settings
        self.clip = None
        self._directions: dict[str, Tensor] = {}

    def load(self) -> Clip:
        """CLIP, read now if it was not before; see ``load_clip`` for what it raises."""
        if self.clip is None:
            settings = self.settings
            self.clip = load_clip(settings.model, settings.pretrained or None, seed=settings.seed)
        return self.clip

    @property
    def scorer(self) -> ClipScorer:
        """CLIP's image tower with the second path."""
        return ClipScorer(self.load().vision, self.settings.vv_blocks or None)

    def word(self, category: str) -> str:
        """What the texts call an object.

        Args:
            category: name of the kind of object, or empty for any.
        """
        raise NotImplementedError

    def text_features(self, word: str) -> Tensor:
        """Unit features (2, d) of what is normal and what is not.

        Args:
            word: what the texts call an object.
        """
        raise NotImplementedError

    @torch.no_grad()
    def direction(self, category: str = "") -> Tensor:
        """The vector that scores a kind of object; see ``text.direction``.

        Args:
            category: name of the kind, or empty for any.
        """
        word = self.word(category)
        if word not in self._directions:
            self._directions[word] = direction(self.text_features(word))
        return self._directions[word]

    def view_scores(self, batch: Any) -> list[ViewScores]:
        """Scores of clouds, each by itself.

        Args:
            batch: a ``CloudBatch``.
        """
        scorer = self.scorer
        kinds = getattr(batch, "category", None) or [""] * len(batch.views)
        found = []
        for index, (views, kind) in enumerate(zip(batch.views, kinds, strict=True)):
            photograph = batch.image[index] if self.settings.fuse_rgb and bool(batch.has_rgb[index]) else None
            found.append(scorer(views, photograph, self.direction(kind).to(views.device)))
        return found


class EnsembleScorer(ClipViewScorer):
    """Scores views by WinCLIP's prompts, without training.

    Args:
        settings: which CLIP.
        object_word: what objects are called in the texts; empty for each cloud's own kind.
    """

    def __init__(self, settings: ClipSettings, object_word: str = "") -> None:
        super().__init__(settings)
        self.object_word = object_word

    def word(self, category: str) -> str:
        """The given word, the name of the kind, or "object".

        Args:
            category: name of the kind of object, or empty for any.
        """
        return self.object_word or category or "object"

    def text_features(self, word: str) -> Tensor:
        """Unit features (2, d) of what is normal and what is not.

        Args:
            word: what the texts call an object.
        """
        return ensemble_features(self.load().text, word)


class PromptScorer(ClipViewScorer):
    """Scores views by prompts that are learned, or read from a file when CLIP is.

    Args:
        settings: which CLIP.
        prompts: what is learned, and how.
    """

    prompts: PromptLearner | None

    def __init__(self, settings: ClipSettings, prompts: PromptSettings | None = None) -> None:
        super().__init__(settings)
        self.prompt_settings = prompts or PromptSettings()
        self.prompts = None
        self.learned = False
        self._given: Prompts | None = None
        self._cache: FeatureCache | None = None

    def load(self) -> Clip:
        """CLIP and prompts, read now if they were not before.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if sizes or files do not fit.
        """
        return self._ready()[0]

    def adopt(self, given: Prompts) -> None:
        """Go on with learned prompts.

        Args:
            given: the prompts; they are checked when CLIP is there.

        Raises:
            ValueError: if they were learned for another CLIP.
        """
        self._given, self.prompts = Prompts(*(part.cpu() for part in given)), None
        self._directions.clear()
        if self.clip is not None:
            self.load()

    def learned_prompts(self) -> Prompts | None:
        """Prompts to keep, or None if nothing is learned."""
        if self.prompts is None or self.clip is None:
            return self._given
        return prompts_of(self.prompts, self.clip.text) if self.learned else None

    def loss(self, batch: Any) -> HybridLoss:
        """Loss of a training step; features of a cloud are computed the first time that it comes.

        Args:
            batch: a ``CloudBatch`` with labels, masks and paths.

        Raises:
            ValueError: if it has none.
        """
        clip, prompts = self._ready()
        targets = cloud_targets(batch)
        self._cache = self._cache or FeatureCache(self.scorer)
        features = self._cache.of(batch.image_path, batch.views)
        self._directions.clear()
        self.learned = True
        return prompt_loss(clip.text, prompts, features, targets, paper_losses=self.prompt_settings.paper_losses)

    def forget_features(self) -> None:
        """Free the memory of the features that training needs."""
        self._cache = None

    def word(self, category: str) -> str:
        """Learned prompts name no kind of object.

        Args:
            category: is not used.
        """
        del category
        return ""

    def text_features(self, word: str) -> Tensor:
        """Unit features (2, d) of what is normal and what is not.

        Args:
            word: is not used.

        Raises:
            ValueError: if the prompts are not learned yet.
        """
        del word
        clip, prompts = self._ready()
        if not self.learned:
            msg = (
                "The prompts are not learned yet: train first and give --ckpt_path, give --model.prompt_path, or use "
                "--model.scoring ensemble, which needs no training."
            )
            raise ValueError(msg)
        return prompts(clip.text)

    def _ready(self) -> tuple[Clip, PromptLearner]:
        """CLIP and prompts; those that are given have sizes of their own."""
        clip = super().load()
        if self.prompts is None:
            settings, given = self.prompt_settings, self._given
            if given is None and settings.path:
                given = read_prompts(settings.path)
            sizes = (settings.prompt_length, settings.deep_sets, settings.deep_length)
            if given is not None:
                sizes = (len(given.normal), *given.deep.shape[:2])
            prompts = PromptLearner(
                clip.text,
                *sizes,
                half_precision_prompts=settings.half_precision_prompts,
                seed=self.settings.seed,
            )
            if given is not None:
                load_prompts(prompts, given, clip.text)
            self.prompts = prompts.to(clip.text.positional_embedding.device)
            self.learned = given is not None
        return clip, self.prompts
