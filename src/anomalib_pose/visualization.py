# SPDX-License-Identifier: Apache-2.0
"""Panels of anomalib's image visualizer for the batch fields of this package.

anomalib looks up the function of a field by its name in a module of its own, so ``register_panels`` adds functions to
that module. This module imports anomalib only when needed, because the plug-in calls it while anomalib is being
imported.
"""

import importlib
import sys
from typing import Any

HOST = "anomalib.visualization.image.functional"
PANELS = ("reference", "boxed_query", "photograph", "view_sheet", "scored_cloud")
"""Batch fields with images: the reference of a query; the query with its predicted box; and, of a point cloud, the
photograph at the model's size, the views with heat maps, and the cloud in the colors of its scores."""


def visualize_panel(image: Any) -> Any:
    """Convert a batch field to a picture, in the same way as anomalib converts images.

    Args:
        image: tensor (3, H, W) in [0, 1], or another image that anomalib's ``visualize_image`` accepts.

    Returns:
        The picture, a ``PIL.Image.Image``.
    """
    functional = importlib.import_module(HOST)
    if hasattr(image, "clamp"):
        # The conversion to bytes wraps around outside [0, 1].
        image = image.detach().clamp(0, 1)
    return functional.visualize_image(image)


def register_panels() -> None:
    """Add a function for each field in ``PANELS`` to the visualizer, if its module is imported."""
    functional = sys.modules.get(HOST)
    for name in PANELS if functional is not None else ():
        if not hasattr(functional, f"visualize_{name}"):
            setattr(functional, f"visualize_{name}", visualize_panel)
