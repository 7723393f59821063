# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of this and of the first version load into a model with the same scores."""

import logging
from pathlib import Path

import lightning
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser

from anomalib_pose.models import PointAD


@pytest.fixture
def save(make_clip, tmp_path):
    """Write a checkpoint of learned prompts; old options take the place of ``paper``."""

    def write(*, paper: bool, old_options: dict[str, bool] | None = None) -> tuple[PointAD, Path]:
        model = make_clip(visualizer=False, paper=paper)
        model.setup("fit")
        model.model.learned = True
        # large enough for half precision to change the features
        model.model.prompts.deep.data *= 100
        checkpoint = {
            "state_dict": model.state_dict(),
            "hyper_parameters": dict(model.hparams),
            "pytorch-lightning_version": lightning.__version__,
        }
        if old_options is not None:
            del checkpoint["hyper_parameters"]["paper"]
            checkpoint["hyper_parameters"] |= old_options
        model.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, tmp_path / "model.ckpt")
        return model, tmp_path / "model.ckpt"

    return write


@pytest.mark.parametrize("paper", [False, True])
def test_a_checkpoint_restores_paper(save, paper):
    model, path = save(paper=paper)
    loaded = PointAD.load_from_checkpoint(path, visualizer=False)
    assert loaded.hparams["paper"] is paper
    assert torch.equal(loaded.model.direction(), model.model.direction())


@pytest.mark.parametrize("paper", [False, True])
def test_the_two_options_of_version_0_1_become_paper(save, paper, caplog):
    model, path = save(paper=paper, old_options={"paper_losses": paper, "half_precision_prompts": paper})
    with caplog.at_level(logging.WARNING, "anomalib_pose"):
        loaded = PointAD.load_from_checkpoint(path, visualizer=False)
    assert loaded.hparams["paper"] is paper
    assert loaded.model.prompt_settings.paper is paper
    assert torch.equal(loaded.model.direction(), model.model.direction())
    assert "one option now" not in caplog.text


@pytest.mark.parametrize("precision", [False, True])
def test_options_that_differ_keep_their_scores_and_warn(save, precision, caplog):
    differing = {"paper_losses": not precision, "half_precision_prompts": precision}
    model, path = save(paper=precision, old_options=differing)
    with caplog.at_level(logging.WARNING, "anomalib_pose"):
        loaded = PointAD.load_from_checkpoint(path, visualizer=False)
    assert loaded.model.prompt_settings.paper is precision
    assert torch.equal(loaded.model.direction(), model.model.direction())
    assert f"paper={precision} keeps its scores" in caplog.text


def test_the_saved_precision_changes_scores(save):
    """Otherwise the tests above would show nothing."""
    (exact, _), (rounded, _) = save(paper=False), save(paper=True)
    assert (exact.model.direction() - rounded.model.direction()).abs().max() > 1e-5


def test_the_command_line_lists_the_ways_of_scoring():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PointAD, "model")
    assert "{prompts,ensemble,mutual}" in parser.format_help()
    with pytest.raises(ArgumentError, match=r"prompts.*ensemble.*mutual.*magic"):
        parser.parse_args(["--model.scoring", "magic"])
