# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of Gaussians as .ply files in the layout of splat viewers: raw values in float32 columns."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomalib_pose.render import RasterizerName
from anomalib_pose.scene.gaussian_scene import COLORS, GaussianScene
from anomalib_pose.scene.ply_table import read_ply_vertices, write_ply_vertices


def _columns(coefficients: int) -> list[str]:
    """Return the column names in the order of the original 3D Gaussian splatting files."""
    rest = 3 * (coefficients - 1)
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(rest)),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]


def save_ply(scene: GaussianScene, path: str | Path) -> None:
    """Write a scene as a binary little-endian .ply.

    Higher coefficients are stored channel by channel (all of red, then green, then blue), as viewers expect. The layout
    has no columns for the reflectance, so the file does not contain it.

    Args:
        scene: the Gaussians.
        path: the file; it is written under a temporary name and then renamed.
    """
    path = Path(path)
    count, coefficients = scene.sh.shape[:2]
    colors = scene.sh[..., :COLORS]
    rest = colors[:, 1:].transpose(1, 2).reshape(count, -1)
    table = torch.cat(
        [
            scene.means,
            torch.zeros_like(scene.means),
            colors[:, 0],
            rest,
            scene.logit_opacities[:, None],
            scene.log_scales,
            scene.quats,
        ],
        1,
    )
    values = np.ascontiguousarray(table.detach().cpu().numpy(), np.float32)
    dtype = np.dtype([(name, np.float32) for name in _columns(coefficients)])
    write_ply_vertices(path, values.view(dtype)[:, 0])


def load_ply(path: str | Path, rasterizer: RasterizerName = "auto") -> GaussianScene:
    """Read Gaussians from a .ply file of any 3D Gaussian splatting program.

    Args:
        path: the file.
        rasterizer: see ``GaussianScene``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a .ply file of Gaussians, or is truncated.
    """
    table = read_ply_vertices(Path(path))
    names = table.dtype.names or ()
    rest = sum(name.startswith("f_rest_") for name in names)
    coefficients = 1 + rest // 3
    missing = sorted(set(_columns(coefficients)) - set(names) - {"nx", "ny", "nz"})
    if missing or coefficients not in {1, 4, 9, 16}:
        msg = f"{path} holds no Gaussians: missing columns {missing}, {coefficients} coefficients per channel."
        raise ValueError(msg)

    def stack(*columns: str) -> Tensor:
        return torch.from_numpy(np.stack([table[name].astype(np.float32) for name in columns], 1))

    higher = stack(*(f"f_rest_{i}" for i in range(rest))) if rest else torch.zeros(len(table), 0)
    higher = higher.reshape(len(table), 3, coefficients - 1).transpose(1, 2)
    scene = GaussianScene(int(coefficients**0.5) - 1, rasterizer)
    scene.set_raw(
        {
            "means": stack("x", "y", "z"),
            "quats": stack("rot_0", "rot_1", "rot_2", "rot_3"),
            "log_scales": stack("scale_0", "scale_1", "scale_2"),
            "logit_opacities": stack("opacity")[:, 0],
            "sh": torch.cat([stack("f_dc_0", "f_dc_1", "f_dc_2")[:, None], higher], 1).contiguous(),
        }
    )
    return scene
