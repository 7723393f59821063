# SPDX-License-Identifier: Apache-2.0
"""Suppression of needless warnings and of repeated log lines of Lightning and anomalib."""

import logging
import warnings

_NEEDLESS_WARNINGS = (
    # The models widen batches of stock datamodules themselves; datamodules should not.
    ("You have overridden `on_before_batch_transfer` in `LightningModule`", r"lightning\.pytorch\..*data_connector"),
    # Lightning's own loader calls a deprecated function of PyTorch.
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", r"lightning\.pytorch\.utilities\._pytree"),
)
"""Beginning of the message, and the module that warns, as regular expressions."""
_ANOMALIB_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


def quiet_host() -> None:
    """Ignore needless warnings of the host, and print each log line of this package once.

    anomalib's command line gives the root logger a plain handler and one of rich, so that all records appear twice. The
    plain handler then skips the records of this package.
    """
    for message, module in _NEEDLESS_WARNINGS:
        warnings.filterwarnings("ignore", message, module=module)
    handlers = logging.getLogger().handlers
    if any(type(handler).__name__ == "RichHandler" for handler in handlers):
        for handler in handlers:
            if type(handler) is logging.StreamHandler and getattr(handler.formatter, "_fmt", "") == _ANOMALIB_FORMAT:
                handler.addFilter(_is_from_elsewhere)  # adds a filter once


def _is_from_elsewhere(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] != "anomalib_pose"
