# SPDX-License-Identifier: Apache-2.0
"""The panel that anomalib's visualiser draws of the batch field ``reference``.

anomalib looks a field's function up by name in one of its own modules, so it is put there. Nothing of anomalib is
imported before it is needed: the plug-in calls this in the middle of anomalib's own import.
"""

import importlib
import sys
from typing import Any

HOST = "anomalib.visualization.image.functional"


def visualize_reference(reference: Any) -> Any:
    """Draw the batch field ``reference``, the view the query is compared with, as anomalib draws images.

    Args:
        reference: Image (3, H, W) in [0, 1] as a tensor, or what ``visualize_image`` of anomalib takes.

    Returns:
        The image as ``PIL.Image.Image``.
    """
    functional = importlib.import_module(HOST)
    if hasattr(reference, "clamp"):
        # beyond [0, 1] the conversion to bytes would wrap around
        reference = reference.detach().clamp(0, 1)
    return functional.visualize_image(reference)


def register_reference_panel() -> None:
    """Make the visualiser know the field ``reference``, if its module is imported."""
    functional = sys.modules.get(HOST)
    if functional is not None and not hasattr(functional, "visualize_reference"):
        functional.visualize_reference = visualize_reference  # type: ignore[attr-defined]
