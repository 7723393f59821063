# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of PointAD that hold the prompts and not CLIP."""

import logging
from dataclasses import replace
from typing import Any

from anomalib_pose.models.point_ad.checkpoint import Prompts
from anomalib_pose.models.point_ad.clip_scorers import ClipViewScorer, PromptScorer

logger = logging.getLogger(__name__)

_NETWORK = "model."
"""Prefix of the state-dict keys of the scorer."""
_PROMPTS = "point_ad_prompts"
"""Key of the prompts in a checkpoint."""
_LOSS_OPTION, _PRECISION_OPTION = "paper_losses", "half_precision_prompts"
"""Hyper-parameters of version 0.1 that ``paper`` replaces."""


class PromptCheckpointMixin:
    """Checkpointing of a Lightning module whose ``self.model`` may be a ``ClipViewScorer``."""

    model: Any
    scoring: str
    hparams: Any
    state_dict: Any

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replace CLIP by the prompts. CLIP is public and is read again when a model is set up.

        Args:
            checkpoint: Lightning's checkpoint, which is changed in place.
        """
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if not isinstance(self.model, ClipViewScorer):
            return
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in weights if not name.startswith(_NETWORK)}
        prompts = self.model.learned_prompts() if isinstance(self.model, PromptScorer) else None
        if prompts is not None:
            checkpoint[_PROMPTS] = prompts._asdict()
            # the checkpoint replaces the file of prompts
            checkpoint["hyper_parameters"]["prompt_path"] = ""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the prompts; CLIP keeps its weights.

        The sizes of the prompts and ``paper`` are those of the checkpoint, not those of this model's arguments.

        Args:
            checkpoint: Lightning's checkpoint, which is changed in place.

        Raises:
            ValueError: if the checkpoint has another scoring, or its prompts were learned for another CLIP.
        """
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        saved = checkpoint.get("hyper_parameters", {})
        scoring = saved.get("scoring", self.scoring)
        if scoring != self.scoring:
            msg = (
                f"The checkpoint has scoring {scoring!r}, but this model has {self.scoring!r}. "
                f"Give --model.scoring {scoring}."
            )
            raise ValueError(msg)
        if not isinstance(self.model, ClipViewScorer):
            return
        if isinstance(self.model, PromptScorer) and _PROMPTS in checkpoint:
            self._adopt_paper(saved_paper(saved))
            self.model.adopt(Prompts(**checkpoint[_PROMPTS]))
        network = {name: value for name, value in self.state_dict().items() if name.startswith(_NETWORK)}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **network}

    def _adopt_paper(self, paper: bool | None) -> None:
        """Use the option ``paper`` of a checkpoint, None for no change, and save it with the next one."""
        if paper is None or paper == self.model.prompt_settings.paper:
            return
        logger.info("The checkpoint's prompts were learned with paper=%s, so this model uses paper=%s.", paper, paper)
        self.model.prompt_settings = replace(self.model.prompt_settings, paper=paper)
        self.hparams.update(paper=paper)


def saved_paper(hyper_parameters: dict[str, Any]) -> bool | None:
    """Return the option ``paper`` of a checkpoint; None if the checkpoint has no such option.

    Version 0.1 had two options in its place. Where they differ, the precision of the prompts counts, so that scores
    stay equal; a warning says so.

    Args:
        hyper_parameters: hyperparameters of the checkpoint.
    """
    if "paper" in hyper_parameters:
        return bool(hyper_parameters["paper"])
    losses, precision = hyper_parameters.get(_LOSS_OPTION), hyper_parameters.get(_PRECISION_OPTION)
    if losses is not None and precision is not None and losses != precision:
        logger.warning(
            "The checkpoint has %s=%s and %s=%s, which are one option now: paper=%s keeps its scores, but changes the "
            "loss of further training.", _LOSS_OPTION, losses, _PRECISION_OPTION, precision, precision,
        )  # fmt: skip
    return precision if precision is not None else losses
