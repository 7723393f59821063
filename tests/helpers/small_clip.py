# SPDX-License-Identifier: Apache-2.0
"""Configuration of the small CLIP behind the reference numbers; tests without reference numbers use any weights."""

import json
from pathlib import Path

SMALL = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 4},
}


def write_small_clip(folder: Path) -> Path:
    """Write the configuration of the small CLIP to a folder."""
    path = folder / "small.json"
    path.write_text(json.dumps(SMALL))
    return path
