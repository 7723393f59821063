# SPDX-License-Identifier: Apache-2.0
"""The choice between rasterizers."""

from collections.abc import Callable

from anomalib_pose.render.types import Rasterizer


def _cpu() -> Rasterizer:
    from anomalib_pose.render.cpu import CpuRasterizer

    return CpuRasterizer()


def _gsplat() -> Rasterizer:
    from anomalib_pose.render.gsplat_backend import GsplatRasterizer

    return GsplatRasterizer()


_BACKENDS: dict[str, Callable[[], Rasterizer]] = {"cpu": _cpu, "gsplat": _gsplat}


def make_rasterizer(backend: str = "auto") -> Rasterizer:
    """Rasterizer of a backend.

    Args:
        backend: ``"cpu"``, ``"gsplat"`` (CUDA, extra ``anomalib-pose[cuda]``), or ``"auto"``: gsplat where CUDA and
            gsplat are present, else the CPU.

    Raises:
        ValueError: if the backend is unknown.
        ImportError: if gsplat was asked for by name and is not installed.
        RuntimeError: if gsplat was asked for by name and there is no CUDA device.
    """
    if backend == "auto":
        from anomalib_pose.render.gsplat_backend import gsplat_is_usable

        backend = "gsplat" if gsplat_is_usable() else "cpu"
    if backend not in _BACKENDS:
        msg = f"backend should be one of 'auto', {', '.join(map(repr, _BACKENDS))}, got {backend!r}."
        raise ValueError(msg)
    return _BACKENDS[backend]()


def warmup() -> None:
    """Compile the CPU kernels of splatting and similarity now, or load them from disk; logs a line if it takes long."""
    from anomalib_pose.render.cpu import warmup as warmup_splats
    from anomalib_pose.render.ssim import warmup as warmup_ssim

    warmup_splats()
    warmup_ssim()
