# SPDX-License-Identifier: Apache-2.0
"""A run prints each of our log lines once, and no needless warnings of the host."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from anomalib.loggers import configure_logger
from rich.logging import RichHandler

from anomalib_pose.models.components.host_output import quiet_host
from anomalib_pose.models.components.no_optimizer import NoOptimizer


@contextmanager
def root_logger_without_handlers() -> Iterator[logging.Logger]:
    """The root logger as a new process has it. Inside the test, because pytest adds its handlers between phases."""
    root = logging.getLogger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(root, "handlers", [])
        patch.setattr(root, "level", root.level)
        patch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [])
        yield root


def test_log_lines_appear_once_beside_the_rich_handler():
    with root_logger_without_handlers() as root:
        configure_logger()
        plain = next(handler for handler in root.handlers if type(handler) is logging.StreamHandler)
        plain.setStream(io.StringIO())
        quiet_host()
        quiet_host()
        logging.getLogger("anomalib_pose.scene.fit").warning("scene line")
        logging.getLogger("another_package").warning("other line")
        assert "scene line" not in plain.stream.getvalue()
        assert "other line" in plain.stream.getvalue()
        assert any(isinstance(handler, RichHandler) for handler in root.handlers)
        assert len(plain.filters) == 1


def test_plain_handler_of_a_user_stays_as_it_is():
    with root_logger_without_handlers() as root:
        logging.basicConfig(format="%(message)s", stream=io.StringIO())
        root.addHandler(RichHandler())
        quiet_host()
        assert not root.handlers[0].filters


def test_no_optimizer_runs_the_training_step_and_has_no_state():
    optimizer = NoOptimizer()
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3
    assert optimizer.step() is None
    optimizer.load_state_dict({"state": {0: 1}})
    assert optimizer.state_dict() == {}
