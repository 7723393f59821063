# SPDX-License-Identifier: Apache-2.0
"""A warning for versions of anomalib that this package is not tested with."""

import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, version

SUPPORTED = "2.7"
"""Major and minor version of anomalib."""

_logger = logging.getLogger(__name__)


@cache
def warn_about_host_version() -> None:
    """Log a warning once if the installed anomalib has another version than ``SUPPORTED``."""
    try:
        installed = version("anomalib")
    except PackageNotFoundError:  # a source tree without installation
        return
    if installed.split(".")[:2] != SUPPORTED.split("."):
        _logger.warning(
            "anomalib-pose is tested with anomalib %s, but %s is installed: results and commands may differ. Install "
            "'anomalib>=%s,<%s'.",
            SUPPORTED,
            installed,
            SUPPORTED,
            _next_minor(SUPPORTED),
        )


def _next_minor(release: str) -> str:
    major, minor = release.split(".")
    return f"{major}.{int(minor) + 1}"
