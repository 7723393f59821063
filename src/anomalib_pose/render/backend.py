# SPDX-License-Identifier: Apache-2.0
"""Choice of the rasterizer of Gaussians: the CPU's or gsplat's."""

from collections.abc import Callable
from typing import Literal

from anomalib_pose.render.types import Rasterizer

RasterizerName = Literal["auto", "cpu", "gsplat"]
"""Name of a rasterizer; ``"auto"`` is gsplat if CUDA and gsplat are present, else the CPU rasterizer."""


def _auto_rasterizer() -> Rasterizer:
    from anomalib_pose.render.gsplat_backend import gsplat_is_usable

    return _gsplat_rasterizer() if gsplat_is_usable() else _cpu_rasterizer()


def _cpu_rasterizer() -> Rasterizer:
    from anomalib_pose.render.cpu import CpuRasterizer

    return CpuRasterizer()


def _gsplat_rasterizer() -> Rasterizer:
    from anomalib_pose.render.gsplat_backend import GsplatRasterizer

    return GsplatRasterizer()


_RASTERIZERS: dict[str, Callable[[], Rasterizer]] = {
    "auto": _auto_rasterizer,
    "cpu": _cpu_rasterizer,
    "gsplat": _gsplat_rasterizer,
}


def make_rasterizer(backend: RasterizerName | str = "auto") -> Rasterizer:
    """Make the rasterizer of a backend.

    Args:
        backend: ``"cpu"``, ``"gsplat"`` (CUDA, extra ``anomalib-pose[cuda]``), or ``"auto"``: gsplat if CUDA and
            gsplat are present, else the CPU rasterizer.

    Raises:
        ValueError: if the backend does not exist.
        ImportError: if the backend is ``"gsplat"`` and gsplat is not installed.
        RuntimeError: if the backend is ``"gsplat"`` and there is no CUDA device.
    """
    if backend not in _RASTERIZERS:
        msg = f"rasterizer should be one of {', '.join(map(repr, _RASTERIZERS))}, got {backend!r}."
        raise ValueError(msg)
    return _RASTERIZERS[backend]()


def warmup() -> None:
    """Compile the CPU kernels of splatting and SSIM now, or load them from disk; log a line if that takes long."""
    from anomalib_pose.render.cpu import warmup as warmup_splatting
    from anomalib_pose.render.ssim import warmup as warmup_ssim

    warmup_splatting()
    warmup_ssim()
