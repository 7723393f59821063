# SPDX-License-Identifier: Apache-2.0
"""Photographs in many forms, and the answer that each form should get through every entry point.

To extend the suite, add one line to ``PHOTOGRAPHS``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tifffile
from PIL import Image

Pixels = np.ndarray


@dataclass(frozen=True)
class Answer:
    """Answer of an entry point about one photograph; None for what the entry point does not compute.

    Args:
        confidence: pose confidence.
        camera_to_world: estimated pose (4, 4).
        score: normalized image score.
        label: whether the photograph is labeled anomalous.
    """

    confidence: float | None = None
    camera_to_world: np.ndarray | None = None
    score: float | None = None
    label: bool | None = None


@dataclass(frozen=True)
class Photograph:
    """One form of the photograph and its expectation.

    Args:
        name: name of the file.
        write: writes the file from RGB (H, W, 3) and the opacity of the object (H, W), both uint8.
        expectation: ``"same"``: the answer about the plain file; ``"no verdict"``: confidence 0 and not good;
            ``"refused"``: an error in one sentence that names the file.
        tolerance: allowed difference of scores, and ten times of poses; 1e-4 where the pixels are equal.
        reason: regular expression in the error.
    """

    name: str
    write: Callable[[Path, Pixels, Pixels], Any]
    expectation: Literal["same", "no verdict", "refused"] = "same"
    tolerance: float = 1e-4
    reason: str = ""


def _pil(convert: Callable[[Pixels, Pixels], Image.Image], **options: Any) -> Callable[[Path, Pixels, Pixels], None]:
    return lambda path, rgb, mask: convert(rgb, mask).save(path, **options)


def _tiff(convert: Callable[[Pixels], Pixels]) -> Callable[[Path, Pixels, Pixels], None]:
    return lambda path, rgb, mask: tifffile.imwrite(path, convert(rgb), photometric="rgb")


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path, Pixels, Pixels], int]:
    def write(path: Path, rgb: Pixels, mask: Pixels) -> int:
        del mask
        return path.write_bytes(change(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()))

    return write


def _resized(width: int, height: int) -> Callable[[Path, Pixels, Pixels], None]:
    return _pil(lambda rgb, mask: Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def _cut_out(rgb: Pixels, mask: Pixels) -> Image.Image:
    """The object alone, on a transparent background whose hidden color is a loud green."""
    alpha = mask[..., None] / 255
    colors = 255 - (255 - rgb) / np.maximum(alpha, 1 / 255)  # over white, these colors are those of the photograph
    colors = np.where(alpha > 0, colors.clip(0, 255).round(), [0, 255, 0]).astype(np.uint8)
    return Image.fromarray(np.dstack([colors, mask]))


def _with_alpha(rgb: Pixels, alpha: Pixels) -> Image.Image:
    return Image.fromarray(np.dstack([rgb, alpha]))


def _constant(value: int, size: int = 64) -> Callable[[Path, Pixels, Pixels], None]:
    return _pil(lambda rgb, mask: Image.new("RGB", (size, size), (value,) * 3))


PHOTOGRAPHS = [
    Photograph("plain.png", _pil(lambda rgb, mask: Image.fromarray(rgb))),
    Photograph("upper.PNG", _pil(lambda rgb, mask: Image.fromarray(rgb), format="PNG")),
    Photograph("lossless.webp", _pil(lambda rgb, mask: Image.fromarray(rgb), lossless=True)),
    Photograph("plain.bmp", _pil(lambda rgb, mask: Image.fromarray(rgb))),
    Photograph("plain.tif", _pil(lambda rgb, mask: Image.fromarray(rgb))),
    Photograph("opaque.png", _pil(lambda rgb, mask: Image.fromarray(rgb).convert("RGBA"))),
    Photograph("nearly opaque.png", _pil(lambda rgb, mask: _with_alpha(rgb, np.full_like(mask, 254))), tolerance=0.02),
    Photograph("binary.ppm", _pil(lambda rgb, mask: Image.fromarray(rgb))),
    Photograph("hash#1 %20.png", _pil(lambda rgb, mask: Image.fromarray(rgb))),
    Photograph("new\nline.png", _pil(lambda rgb, mask: Image.fromarray(rgb))),
    Photograph("cut out.png", _pil(_cut_out), tolerance=0.05),
    Photograph(
        "sixteen_bit.png", lambda path, rgb, mask: cv2.imwrite(str(path), rgb[..., ::-1].astype(np.uint16) * 257)
    ),
    Photograph("sixteen_bit.tiff", _tiff(lambda rgb: rgb.astype(np.uint16) * 257)),
    Photograph("float.tiff", _tiff(lambda rgb: rgb.astype(np.float32) / 255)),
    Photograph("with space é.png", _pil(lambda rgb, mask: Image.fromarray(rgb))),
    Photograph("palette.png", _pil(lambda rgb, mask: Image.fromarray(rgb).quantize(256)), tolerance=0.15),
    Photograph("photo.jpg", _pil(lambda rgb, mask: Image.fromarray(rgb), quality=98, subsampling=0), tolerance=0.05),
    Photograph("double.png", _resized(128, 128), tolerance=0.1),
    Photograph("eightfold.png", _resized(512, 512), tolerance=0.1),
    Photograph("black.png", _constant(0), "no verdict"),
    Photograph("white.png", _constant(255), "no verdict"),
    Photograph("gray.png", _constant(128), "no verdict"),
    Photograph("one pixel.png", _constant(0, 1), "no verdict"),
    Photograph("tiny.png", _resized(8, 8), "no verdict"),
    Photograph("wide.png", _pil(lambda rgb, mask: Image.fromarray(rgb[8:56])), "refused", reason="aspect|64 x 48"),
    Photograph("one column.png", _resized(1, 64), "refused", reason="aspect|1 x 64"),
    Photograph("empty.png", _bytes(lambda data: b""), "refused"),
    Photograph("truncated.png", _bytes(lambda data: data[: len(data) // 2]), "refused"),
    Photograph("text.png", _bytes(lambda data: b"not an image"), "refused"),
    Photograph("nan.tiff", _tiff(lambda rgb: np.full(rgb.shape, np.nan, np.float32)), "refused"),
    Photograph("transparent.png", _pil(lambda rgb, mask: _cut_out(rgb, 0 * mask)), "refused"),
]


def photographs(*expectations: str) -> list[Photograph]:
    """Return the photographs with one of the expectations."""
    return [photograph for photograph in PHOTOGRAPHS if photograph.expectation in expectations]


def write_photographs(
    folder: Path, photographs_to_write: list[Photograph], rgb: Pixels, mask: Pixels
) -> dict[str, Path]:
    """Write each photograph into a folder of its own name; return the folders by name."""
    folders = {}
    for photograph in photographs_to_write:
        folders[photograph.name] = folder / photograph.name.replace(".", "_")
        folders[photograph.name].mkdir(parents=True)
        photograph.write(folders[photograph.name] / photograph.name, rgb, mask)
    return folders
