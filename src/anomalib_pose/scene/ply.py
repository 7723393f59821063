# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of Gaussians as .ply files in the layout of splat viewers: raw values in float32 columns."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomalib_pose.render import RasterizerName
from anomalib_pose.scene.compressed_ply import is_compressed, unpack
from anomalib_pose.scene.gaussian_scene import COLORS, GaussianScene
from anomalib_pose.scene.ply_table import read_ply_elements, read_ply_vertices, write_ply_vertices

_OTHER_FORMATS = (".splat", ".spz", ".ksplat", ".sog")
_REST_COLUMNS = (0, 9, 24, 45)


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
    """Read Gaussians from a .ply file of any 3D Gaussian splatting program, plain or compressed by SuperSplat.

    Args:
        path: the file.
        rasterizer: see ``GaussianScene``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a .ply file of Gaussians, for example a .splat or .spz file, is truncated, or has
            values that are not finite.
    """
    path = Path(path)
    if path.suffix.lower() in _OTHER_FORMATS:
        msg = f"{path} is a {path.suffix.lower()} file: expected a .ply; convert it with SuperSplat or splat-transform."
        raise ValueError(msg)
    tables = read_ply_elements(path)
    columns = unpack(path, tables) if is_compressed(tables) else _columns_of(read_ply_vertices(path))
    rest = sum(name.startswith("f_rest_") for name in columns)
    _check_columns(path, columns, rest)
    count, coefficients = len(columns["x"]), 1 + rest // 3

    def stack(*names: str) -> Tensor:
        return torch.from_numpy(np.stack([columns[name] for name in names], 1))

    higher = stack(*(f"f_rest_{i}" for i in range(rest))) if rest else torch.zeros(count, 0)
    higher = higher.reshape(count, 3, coefficients - 1).transpose(1, 2)
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


def _columns_of(table: np.ndarray) -> dict[str, np.ndarray]:
    return {name: table[name] for name in table.dtype.names or ()}


def _check_columns(path: Path, columns: dict[str, np.ndarray], rest: int) -> None:
    """Check that a file has all columns of Gaussians, and convert them to finite float32."""
    if rest not in _REST_COLUMNS:
        msg = f"{path} has {rest} columns f_rest: expected {', '.join(map(str, _REST_COLUMNS))} (degrees 0 to 3)."
        raise ValueError(msg)
    names = [name for name in _columns(1 + rest // 3) if name not in {"nx", "ny", "nz"}]
    missing = [name for name in names if name not in columns]
    if missing:
        msg = f"{path} holds no Gaussians: it has no columns {', '.join(missing)}."
        raise ValueError(msg)
    with np.errstate(over="ignore", invalid="ignore"):
        columns |= {name: columns[name].astype(np.float32) for name in names}
        invalid = {name: ~np.isfinite(columns[name]) for name in names}
        invalid |= {name: ~np.isfinite(np.exp(columns[name])) for name in ("scale_0", "scale_1", "scale_2")}
    invalid["rot_0"] |= np.all([columns[f"rot_{number}"] == 0 for number in range(4)], 0)
    wrong = [name for name in names if invalid[name].any()]
    if wrong:
        number = int(np.logical_or.reduce([invalid[name] for name in wrong]).sum())
        msg = (
            f"{path} has {number} Gaussians of {len(columns['x'])} with NaN, infinite or zero values in "
            f"{', '.join(wrong[:4])}: remove them, or export the scene again."
        )
        raise ValueError(msg)
    if not len(columns["x"]):
        msg = f"{path} holds no Gaussians: its list of vertices is empty."
        raise ValueError(msg)
