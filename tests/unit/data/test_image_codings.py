# SPDX-License-Identifier: Apache-2.0
"""One picture in many codings; one line for each coding."""

import io
import logging
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from anomalib_pose.data import decoding
from anomalib_pose.data.decoding import image_size
from anomalib_pose.data.images import read_image

HEIGHT, WIDTH = 12, 16
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMOOTH = cv2.resize(RGB[:3, :4], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
GRAY = RGB[..., :1].repeat(3, 2)
FEW = (RGB // 128 * 255).astype(np.uint8)
BLACK_WHITE = FEW[..., :1].repeat(3, 2)
ALPHA = (
    np.where(np.arange(WIDTH) < 9, 255, np.where(np.arange(WIDTH) < 12, 102, 0))
    .astype(np.uint8)[None]
    .repeat(HEIGHT, 0)
)
CUT_OUT = np.dstack([RGB, ALPHA])
GRAY_CUT_OUT = np.dstack([GRAY, ALPHA])
KEY = (RGB[0, 0] == RGB).all(-1)


def _pil(mode=None, **options):
    def write(path, pixels):
        image = Image.fromarray(pixels)
        (image if mode is None else image.convert(mode)).save(path, **options)

    return write


def _tiff(convert=lambda pixels: pixels, **options):
    def write(path, pixels):
        options.setdefault("photometric", "rgb" if convert(pixels).ndim == 3 else "minisblack")
        tifffile.imwrite(path, convert(pixels), **options)

    return write


def _opencv(convert):
    def write(path, pixels):
        stored = convert(pixels)
        order = [0] if stored.ndim == 2 else [2, 1, 0, *range(3, stored.shape[2])]
        assert cv2.imwrite(str(path), stored if stored.ndim == 2 else stored[..., order])

    return write


def _deep(pixels):
    return pixels.astype(np.uint16) * 257


def _unit(pixels):
    return pixels.astype(np.float32) / 255


def _one(convert):
    return lambda pixels: convert(pixels)[..., 0]


def _png(pixels, depth, color_type, *chunks, size=None):
    """Encode a PNG by its specification: 16-bit gray and alpha, and color keys, which writers lack."""
    stored = pixels.astype(f">u{depth // 8}")
    rows = b"".join(b"\0" + row.tobytes() for row in stored)
    header = struct.pack(">IIBBBBB", *(size or stored.shape[1::-1]), depth, color_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def _deep_gray_and_alpha(path, pixels):
    path.write_bytes(_png(_deep(pixels[..., [0, 3]]), 16, 4))


def _color_key(path, pixels):
    path.write_bytes(_png(pixels, 8, 2, (b"tRNS", struct.pack(">3H", *(int(value) for value in pixels[0, 0])))))


def _deep_color_key(path, pixels):
    path.write_bytes(_png(_deep(pixels), 16, 2, (b"tRNS", struct.pack(">3H", *(int(v) * 257 for v in pixels[0, 0])))))


def _gray_key(path, pixels):
    path.write_bytes(_png(pixels[..., 0], 8, 0, (b"tRNS", struct.pack(">H", int(pixels[0, 0, 0])))))


def _deep_gray_key(path, pixels):
    path.write_bytes(_png(_deep(pixels[..., 0]), 16, 0, (b"tRNS", struct.pack(">H", int(pixels[0, 0, 0]) * 257))))


def _gamma(path, pixels):
    path.write_bytes(_png(pixels, 8, 2, (b"gAMA", struct.pack(">I", 100000))))


def _lab(path, pixels):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(Image.fromarray(pixels), srgb, lab, outputMode="LAB").save(path)


def _profile(path, pixels):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(path, icc_profile=profile)


def _transparent_palette(path, pixels):
    image = Image.fromarray(pixels[..., :3]).quantize(64)
    image.save(path, transparency=bytes([255] * 64))


def _associated(convert):
    def stored(pixels):
        alpha = pixels[..., 3:].astype(np.float64) / 255
        return convert(np.dstack([np.round(pixels[..., :3] * alpha), pixels[..., 3]]).astype(np.uint8))

    return stored


def _transparent_gif(path, pixels):
    image = Image.fromarray(pixels[..., :3].astype(np.uint8)).quantize(8)
    image.save(path, transparency=image.getpixel((0, 0)))


def _palette_with_alpha(path, pixels):
    colors, ids = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    image = Image.fromarray(ids.reshape(HEIGHT, WIDTH).astype(np.uint8))
    image.putpalette(colors[:, :3].flatten().tolist())
    image.save(path, transparency=bytes(colors[:, 3].tolist()))


def _animation(path, pixels):
    Image.fromarray(pixels).save(path, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], lossless=True)


CODINGS = {
    # coding: (suffix, picture, writer, tolerance in steps of 1/255)
    "png": (".png", RGB, _pil(), 0),
    "png, gray": (".png", GRAY, lambda path, pixels: Image.fromarray(pixels[..., 0]).save(path), 0),
    "png, 1 bit": (".png", BLACK_WHITE, _pil("1"), 0),
    "png, palette": (".png", FEW, lambda path, pixels: Image.fromarray(pixels).quantize(8).save(path), 0),
    "png, palette of 2 bits": (".png", BLACK_WHITE, lambda p, x: Image.fromarray(x).quantize(4).save(p, bits=2), 0),
    "png, palette with opaque transparency": (".png", FEW, _transparent_palette, 0),
    "png, opaque alpha": (".png", RGB, _pil("RGBA"), 0),
    "png, gray with opaque alpha": (".png", GRAY, lambda p, x: Image.fromarray(x[..., 0]).convert("LA").save(p), 0),
    "png, 16-bit gray": (".png", GRAY, _opencv(_one(_deep)), 0),
    "png, 16-bit color": (".png", RGB, _opencv(_deep), 0),
    "png, 16-bit opaque alpha": (".png", np.dstack([RGB, ALPHA | 255]), _opencv(_deep), 0),
    "png, gamma": (".png", RGB, _gamma, 0),
    "png, profile": (".png", RGB, _profile, 0),
    "png, animated": (".png", RGB, _animation, 0),
    "jpg": (".jpg", SMOOTH, _pil(quality=100, subsampling=0), 3),
    "jpg, gray": (".jpg", GRAY, lambda path, pixels: Image.fromarray(pixels[..., 0]).save(path, quality=100), 3),
    "jpg, CMYK": (".jpg", SMOOTH, _pil("CMYK", quality=100, subsampling=0), 4),
    "jpg, progressive": (".JPG", SMOOTH, _pil(quality=100, subsampling=0, progressive=True), 3),
    "bmp": (".bmp", RGB, _pil(), 0),
    "bmp, palette": (".bmp", FEW, lambda path, pixels: Image.fromarray(pixels).quantize(8).save(path), 0),
    "bmp, 1 bit": (".bmp", BLACK_WHITE, _pil("1"), 0),
    "webp, lossless": (".webp", RGB, _pil(lossless=True), 0),
    "webp, animated": (".webp", RGB, _animation, 0),
    "tif": (".tif", RGB, _pil(), 0),
    "tif, gray, white is zero": (".tif", GRAY, _tiff(lambda x: 255 - x[..., 0], photometric="miniswhite"), 0),
    "tif, 1 bit": (".tif", BLACK_WHITE, _pil("1"), 0),
    "tif, 1 bit, fax": (".tif", BLACK_WHITE, _pil("1", compression="group4"), 0),
    "tif, palette": (".tif", FEW, lambda path, pixels: Image.fromarray(pixels).quantize(8).save(path), 0),
    "tif, LZW": (".tif", RGB, _pil(compression="tiff_lzw"), 0),
    "tif, deflate": (".tif", RGB, _pil(compression="tiff_adobe_deflate"), 0),
    "tif, JPEG": (".tif", SMOOTH, _pil(compression="jpeg", quality=100), 6),
    "tif, CMYK": (".tif", RGB, _pil("CMYK"), 0),
    "tif, YCbCr": (".tif", SMOOTH, _pil("YCbCr"), 3),
    "tif, LAB": (".tif", SMOOTH, _lab, 12),
    "tif, planes": (".tif", RGB, _tiff(lambda x: np.moveaxis(x, -1, 0), planarconfig="separate", photometric="rgb"), 0),
    "tif, big endian": (".tif", RGB, _tiff(_deep, byteorder=">"), 0),
    "tif, BigTIFF": (".tif", RGB, _tiff(bigtiff=True), 0),
    "tif, tiles": (".tif", RGB, _tiff(tile=(16, 16)), 0),
    "tif, 16-bit gray": (".tif", GRAY, _tiff(_one(_deep)), 0),
    "tif, 16-bit gray, white is zero": (
        ".tif",
        GRAY,
        _tiff(lambda x: 65535 - _deep(x[..., 0]), photometric="miniswhite"),
        0,
    ),
    "tif, 16-bit color": (".tif", RGB, _tiff(_deep), 0),
    "tif, 16-bit color, LZW": (".tif", RGB, _tiff(_deep, compression="lzw"), 0),
    "tif, 16-bit color, OpenCV": (".tif", RGB, _opencv(_deep), 0),
    "tif, 16-bit color, planes": (
        ".tif",
        RGB,
        _tiff(lambda x: np.moveaxis(_deep(x), -1, 0), planarconfig="separate", photometric="rgb"),
        0,
    ),
    "tif, int16": (".tif", GRAY, _tiff(lambda x: np.round(x[..., 0] / 255 * 32767).astype(np.int16)), 0.01),
    "tif, int32 of 8-bit values": (".tif", GRAY, _tiff(_one(lambda x: x.astype(np.int32))), 0),
    "tif, int32 of 8-bit colors": (".tif", RGB, _tiff(lambda x: x.astype(np.int32)), 0),
    "tif, uint32 of 16-bit values": (".tif", GRAY, _tiff(_one(lambda x: _deep(x).astype(np.uint32))), 0),
    "tif, float16": (".tif", RGB, _tiff(lambda x: _unit(x).astype(np.float16)), 0.13),
    "tif, float32": (".tif", RGB, _tiff(_unit), 0),
    "tif, float32, Pillow": (".tif", GRAY, lambda path, pixels: Image.fromarray(_unit(pixels[..., 0])).save(path), 0),
    "tif, float64": (".tif", RGB, _tiff(lambda x: _unit(x).astype(np.float64)), 0),
    "tif, float gray": (".tif", GRAY, _tiff(_one(_unit)), 0),
    "tif, a channel of unknown meaning": (
        ".tif",
        CUT_OUT[..., :3],
        _tiff(lambda x: np.dstack([x, x[..., 0]]), photometric="rgb", extrasamples=["unspecified"]),
        0,
    ),
    "tif, 16-bit channel of unknown meaning": (
        ".tif",
        RGB,
        _tiff(lambda x: _deep(np.dstack([x, x[..., 0]])), photometric="rgb", extrasamples=["unspecified"]),
        0,
    ),
    "ppm": (".ppm", RGB, _pil(), 0),
    "gif": (".gif", FEW, _pil(), 0),
    "tif, pages": (".tif", RGB, lambda path, x: tifffile.imwrite(path, np.stack([x, 0 * x]), photometric="rgb"), 0),
}
CUT_OUTS = {
    "png, palette": (".png", np.dstack([FEW, ALPHA]), _palette_with_alpha, 0),
    "png, palette with a transparent color": (
        ".png",
        np.dstack([FEW, 255 - 255 * (FEW[0, 0] == FEW).all(-1)]),
        _palette_with_alpha,
        0,
    ),
    "gif": (".gif", np.dstack([FEW, 255 - 255 * (FEW[0, 0] == FEW).all(-1)]), _transparent_gif, 0),
    "png": (".png", CUT_OUT, _pil(), 0),
    "png, gray": (".png", GRAY_CUT_OUT, _pil("LA"), 0),
    "png, 16 bit": (".png", CUT_OUT, _opencv(_deep), 0),
    "png, 16-bit gray": (".png", GRAY_CUT_OUT, _deep_gray_and_alpha, 0),
    "png, color key": (".png", np.dstack([RGB, 255 - 255 * KEY]), lambda p, x: _color_key(p, x[..., :3]), 0),
    "png, 16-bit color key": (
        ".png",
        np.dstack([RGB, 255 - 255 * KEY]),
        lambda p, x: _deep_color_key(p, x[..., :3]),
        0,
    ),
    "png, gray key": (".png", np.dstack([GRAY, 255 - 255 * (GRAY[0, 0] == GRAY).all(-1)]), _gray_key, 0),
    "png, 16-bit gray key": (".png", np.dstack([GRAY, 255 - 255 * (GRAY[0, 0] == GRAY).all(-1)]), _deep_gray_key, 0),
    "webp": (".webp", CUT_OUT, _pil(lossless=True, exact=True), 0),
    "bmp": (".bmp", CUT_OUT, _opencv(lambda pixels: pixels), 0),
    "tif": (".tif", CUT_OUT, _tiff(extrasamples=["unassalpha"]), 0),
    "tif, premultiplied": (".tif", CUT_OUT, _tiff(_associated(lambda x: x), extrasamples=["assocalpha"]), 2),
    "tif, 16 bit": (".tif", CUT_OUT, _tiff(_deep, extrasamples=["unassalpha"]), 0),
    "tif, 16 bit, premultiplied": (".tif", CUT_OUT, _tiff(_associated(_deep), extrasamples=["assocalpha"]), 2),
    "tif, OpenCV": (".tif", CUT_OUT, _opencv(lambda pixels: pixels), 0),
    "tif, 16 bit, OpenCV": (".tif", CUT_OUT, _opencv(_deep), 0),
    "tif, 16-bit gray": (
        ".tif",
        GRAY_CUT_OUT,
        _tiff(
            lambda x: _deep(x[..., [0, 3]]),
            photometric="minisblack",
            planarconfig="contig",
            extrasamples=["unassalpha"],
        ),
        0,
    ),
    "tif, float": (".tif", CUT_OUT, _tiff(_unit, extrasamples=["unassalpha"]), 0),
}


@pytest.fixture(autouse=True)
def _forget_reports():
    decoding._reported.clear()


def _agrees(path, picture, tolerance):
    image, alpha = read_image(path)
    truth = torch.from_numpy(picture / 255).float().permute(2, 0, 1)
    assert image.dtype == torch.float32
    if len(truth) == 4 and bool((truth[3] < 1).any()):
        assert (alpha - truth[3]).abs().max() * 255 <= tolerance + 0.01
        assert (image - (truth[:3] * truth[3] + 1 - truth[3])).abs().max() * 255 <= tolerance + 0.01
    else:
        assert alpha is None
        assert (image - truth[:3]).abs().max() * 255 <= tolerance + 0.01
    assert image_size(path) == (WIDTH, HEIGHT) == (image.shape[2], image.shape[1])


@pytest.mark.parametrize("coding", CODINGS)
def test_a_picture_is_the_same_in_any_coding(tmp_path, coding):
    suffix, picture, write, tolerance = CODINGS[coding]
    write(tmp_path / f"a{suffix}", picture)
    _agrees(tmp_path / f"a{suffix}", picture, tolerance)


@pytest.mark.parametrize("coding", CUT_OUTS)
def test_transparency_is_the_same_in_any_coding(tmp_path, coding):
    suffix, picture, write, tolerance = CUT_OUTS[coding]
    write(tmp_path / f"a{suffix}", picture)
    _agrees(tmp_path / f"a{suffix}", picture, tolerance)


def test_a_deep_tiff_is_read_without_imagecodecs(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", _deep(RGB), photometric="rgb", compression="lzw")

    def asarray(*_):
        msg = "<COMPRESSION.LZW: 5> requires the 'imagecodecs' package"
        raise ValueError(msg)

    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    _agrees(tmp_path / "a.tif", RGB, 0)


EXIF_WRITERS = {
    "jpg": (".jpg", SMOOTH, lambda p, x, exif: Image.fromarray(x).save(p, exif=exif, quality=100, subsampling=0), 3),
    "png": (".png", RGB, lambda path, x, exif: Image.fromarray(x).save(path, exif=exif), 0),
    "webp": (".webp", RGB, lambda path, x, exif: Image.fromarray(x).save(path, exif=exif, lossless=True), 0),
    "tif": (
        ".tif",
        RGB,
        lambda p, x, exif: tifffile.imwrite(p, x, photometric="rgb", extratags=[(274, 3, 1, exif[274], True)]),
        0,
    ),
    "tif, 16 bit": (
        ".tif",
        RGB,
        lambda p, x, exif: tifffile.imwrite(p, _deep(x), photometric="rgb", extratags=[(274, 3, 1, exif[274], True)]),
        0,
    ),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("coding", EXIF_WRITERS)
def test_exif_orientation_is_not_applied_and_is_reported_once(tmp_path, caplog, coding, orientation):
    suffix, picture, write, tolerance = EXIF_WRITERS[coding]
    exif = Image.Exif()
    exif[274] = orientation
    for name in ("a", "b"):
        write(tmp_path / f"{name}{suffix}", picture, exif)
        with caplog.at_level(logging.WARNING):
            _agrees(tmp_path / f"{name}{suffix}", picture, tolerance)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (orientation != 1)
    assert all(f"a{suffix} has EXIF orientation {orientation}" in message for message in messages)


@pytest.mark.parametrize("coding", ["png, animated", "webp, animated", "tif, pages"])
def test_further_frames_are_reported(tmp_path, caplog, coding):
    suffix, picture, write, _ = CODINGS[coding]
    write(tmp_path / f"a{suffix}", picture)
    with caplog.at_level(logging.WARNING):
        read_image(tmp_path / f"a{suffix}")
    (record,) = caplog.records
    assert f"a{suffix} has 2 pages or frames" in record.getMessage()


def _bytes(pixels, suffix, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, suffix, **options)
    return buffer.getvalue()


LARGE = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def _cut(suffix, **options):
    return lambda path: path.write_bytes(_bytes(LARGE, suffix, **options)[:3000])


def _cut_tiff(**options):
    def write(path):
        tifffile.imwrite(path, _deep(LARGE), photometric="rgb", **options)
        path.write_bytes(path.read_bytes()[:12000])

    return write


def _cut_deep_png(path):
    path.write_bytes(_png(_deep(LARGE), 16, 2)[:3000])


REFUSED = {
    # kind: (file name, writer, words of the message, whether image_size refuses it, too)
    "missing": ("a.png", lambda path: None, "no image", True),
    "0 bytes": ("a.png", lambda path: path.touch(), "empty", True),
    "text": ("a.png", lambda path: path.write_text("no image at all"), "cannot be read", True),
    "PostScript": (
        "a.png",
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "cannot be read",
        True,
    ),
    "folder": ("a.png", lambda path: path.mkdir(), "is a folder", True),
    "link": ("a.png", lambda path: path.symlink_to(path.with_name("b.png")), "link to .*b.png", True),
    "cut PNG": ("a.png", _cut("PNG"), "cannot be read", False),
    "cut 16-bit PNG": ("a.png", _cut_deep_png, "cannot be read", False),
    "cut JPEG": ("a.jpg", _cut("JPEG"), "cannot be read", False),
    "cut WebP": ("a.webp", _cut("WEBP", lossless=True), "cannot be read", False),
    "cut BMP": ("a.bmp", _cut("BMP"), "cannot be read", False),
    "cut TIFF": ("a.tif", _cut_tiff(), "cannot be read", False),
    "cut compressed TIFF": ("a.tif", _cut_tiff(compression="zlib"), "cannot be read", False),
    "header of a TIFF": ("a.tif", lambda path: path.write_bytes(b"II*\0"), "cannot be read", True),
    "header of a PNG": ("a.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "cannot be read", True),
    "transparent": (
        "a.png",
        lambda path: Image.fromarray(np.dstack([RGB, 0 * ALPHA])).save(path),
        "transparent everywhere",
        False,
    ),
    "float above 1": (
        "a.tif",
        lambda path: tifffile.imwrite(path, RGB.astype(np.float32), photometric="rgb"),
        "values from 0 to 255",
        False,
    ),
    "float below 0": (
        "a.tif",
        lambda path: tifffile.imwrite(path, _unit(RGB) - 0.5, photometric="rgb"),
        "values from -0.5",
        False,
    ),
    "NaN": ("a.tif", lambda path: tifffile.imwrite(path, np.full((4, 4), np.nan, np.float32)), "NaN", False),
    "infinite": ("a.tif", lambda path: tifffile.imwrite(path, np.full((4, 4), np.inf, np.float32)), "inf", False),
    "negative": ("a.tif", lambda path: tifffile.imwrite(path, np.full((4, 4), -3, np.int16)), "values from -3", False),
    "32 bits": ("a.tif", lambda path: tifffile.imwrite(path, np.full((4, 4), 70000, np.int32)), "70000", False),
    "complex": ("a.tif", lambda path: tifffile.imwrite(path, np.ones((4, 4), np.complex64)), "cannot be read", False),
    "many channels": (
        "a.tif",
        lambda path: tifffile.imwrite(
            path, np.ones((9, 8, 5), np.uint16), photometric="minisblack", planarconfig="contig"
        ),
        "5 channels",
        False,
    ),
    "too many pixels": (
        "a.png",
        lambda path: path.write_bytes(_png(np.zeros((1, 1), np.uint8), 8, 0, size=(20000, 20000))),
        "more than 178 million pixels",
        True,
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_files_are_refused_in_one_sentence_that_names_the_file(tmp_path, kind):
    name, write, words, bad_header = REFUSED[kind]
    write(tmp_path / name)
    error = FileNotFoundError if kind in ("missing", "link") else ValueError
    for read in (read_image, image_size) if bad_header else (read_image,):
        with pytest.raises(error, match=words) as information:
            read(tmp_path / name)
        message = str(information.value)
        assert str(tmp_path / name) in message
        assert "\n" not in message


@pytest.mark.parametrize("read", [read_image, image_size])
def test_the_limit_of_pixels_holds_for_any_reader(tmp_path, monkeypatch, read):
    monkeypatch.setattr(decoding, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".tif"):
        Image.fromarray(RGB).save(tmp_path / f"a{suffix}")
        with pytest.raises(ValueError, match=rf"a\{suffix} has more than 0 million pixels"):
            read(tmp_path / f"a{suffix}")
