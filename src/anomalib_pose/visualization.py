# SPDX-License-Identifier: Apache-2.0
"""The panels that anomalib's visualizer draws of our batch fields which are images.

anomalib looks a field's function up by name in one of its own modules, so it is put there. Nothing of anomalib is
imported before it is needed: the plug-in calls this in the middle of anomalib's own import.
"""

import importlib
import sys
from typing import Any

HOST = "anomalib.visualization.image.functional"
PANELS = ("reference", "boxed_query", "photograph", "view_sheet", "scored_cloud")
"""The view the query is compared with; the query with the box that was found in it; a cloud's photograph as the model
saw it, its views with heat, and itself in the colors of its scores."""


def visualize_panel(image: Any) -> Any:
    """Draw a batch field as anomalib draws images.

    Args:
        image: Image (3, H, W) in [0, 1] as a tensor, or what ``visualize_image`` of anomalib takes.

    Returns:
        The image as ``PIL.Image.Image``.
    """
    functional = importlib.import_module(HOST)
    if hasattr(image, "clamp"):
        # beyond [0, 1] the conversion to bytes would wrap around
        image = image.detach().clamp(0, 1)
    return functional.visualize_image(image)


def register_panels() -> None:
    """Make the visualizer know our fields, if its module is imported."""
    functional = sys.modules.get(HOST)
    for name in PANELS if functional is not None else ():
        if not hasattr(functional, f"visualize_{name}"):
            setattr(functional, f"visualize_{name}", visualize_panel)
