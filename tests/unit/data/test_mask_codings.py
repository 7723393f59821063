# SPDX-License-Identifier: Apache-2.0
"""One mask in many codings; one line for each coding."""

import io
import logging

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage

from anomalib_pose.data import masks
from anomalib_pose.data.masks import images_with_masks, mask_of_image, read_defect_mask, read_mask, read_object_mask

SIDE = 96
Y, X = np.mgrid[:SIDE, :SIDE]
RADIUS = 28 + 4 * np.sin(5 * np.arctan2(Y - 50, X - 44))
DISTANCE = np.hypot(Y - 50, X - 44) - RADIUS
MASK = DISTANCE < 0
SOFT = (np.clip(0.5 - DISTANCE, 0, 1) * 255).astype(np.uint8)
IDS = MASK * (1 + (X > 44) + 2 * (Y > 50)).astype(np.uint8)
OUTLINE = ndimage.binary_dilation(MASK, iterations=2) & ~MASK
COLORS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
# The colors of PASCAL VOC, of Matplotlib's tab10, and of a ramp of grays
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
TAB10 = [31, 119, 180, 255, 127, 14, 44, 160, 44, 214, 39, 40, 148, 103, 189]


def _image(convert):
    return lambda path, mask: Image.fromarray(convert(mask)).save(path)


def _gray(value, dtype=np.uint8):
    return _image(lambda mask: (mask * value).astype(dtype))


def _painted(color, background=(0, 0, 0)):
    return _image(lambda mask: np.where(mask[..., None], np.uint8(color), np.uint8(background)))


def _palette(colors, ids=IDS):
    def write(path, mask):
        image = Image.fromarray(ids)
        image.putpalette(colors)
        image.save(path)

    return write


def _lossy(suffix, quality, convert=lambda mask: (mask * 255).astype(np.uint8)):
    """Save as PNG what a lossy format has left of a mask."""

    def write(path, mask):
        buffer = io.BytesIO()
        Image.fromarray(convert(mask)).save(buffer, suffix, quality=quality)
        if path.suffix == ".png":
            Image.open(buffer).save(path)
        else:
            path.write_bytes(buffer.getvalue())

    return write


def _alpha(colors):
    return _image(lambda mask: np.dstack([np.broadcast_to(np.uint8(colors), (SIDE, SIDE, 3)), mask * np.uint8(255)]))


def _tiff(values, **options):
    return lambda path, mask: tifffile.imwrite(path, values(mask), **options)


def _one_bit(path, mask):
    Image.fromarray(mask).convert("1").save(path)


def _gray_and_alpha(path, mask):
    Image.fromarray(np.dstack([np.full_like(IDS, 255), mask * np.uint8(255)]), "LA").save(path)


def _color_key(path, mask):
    Image.fromarray(IDS).save(path, transparency=0)


SHARP = {
    # suffix and writer of each coding
    "0 and 255": (".png", _gray(255)),
    "0 and 1": (".png", _gray(1)),
    "0 and 128": (".png", _gray(128)),
    "0 and 254": (".png", _gray(254)),
    "1 bit": (".png", _one_bit),
    "1 bit, TIFF": (".tif", _one_bit),
    "RGB, 0 and 255": (".png", _painted((255, 255, 255))),
    "RGB, 0 and 1": (".png", _painted((1, 1, 1))),
    "label ids": (".png", _image(lambda _: IDS)),
    "large label ids": (".png", _image(lambda _: IDS * np.uint8(60))),
    "label ids with outline 255": (".png", _image(lambda mask: np.where(OUTLINE, 255, IDS).astype(np.uint8))),
    "16 bit, 0 and 65535": (".png", _gray(65535, np.uint16)),
    "16 bit, 0 and 1": (".png", _gray(1, np.uint16)),
    "16 bit, 0 and 255": (".png", _gray(255, np.uint16)),
    "16-bit ids": (".png", _image(lambda _: IDS.astype(np.uint16) * 300)),
    "16-bit TIFF": (".tif", _tiff(lambda mask: mask.astype(np.uint16) * 65535)),
    "int32 TIFF, 0 and 1": (".tif", _tiff(lambda mask: mask.astype(np.int32))),
    "int64 TIFF, ids": (".tif", _tiff(lambda _: IDS.astype(np.int64) * 1000)),
    "float TIFF, 0 and 1": (".tif", _tiff(lambda mask: mask.astype(np.float32))),
    "float TIFF, 0 and 255": (".tif", _tiff(lambda mask: mask.astype(np.float32) * 255)),
    "float64 TIFF": (".tif", _tiff(lambda mask: mask.astype(np.float64))),
    "TIFF, white is zero": (".tif", _tiff(lambda m: np.uint8(255 - 255 * m), photometric="miniswhite")),
    "palette, PASCAL VOC": (".png", _palette(VOC)),
    "palette, one class": (".png", _palette(VOC, MASK.astype(np.uint8))),
    "palette, no black": (".png", _palette(TAB10)),
    "palette, ramp": (".png", _palette([value for value in range(256) for _ in range(3)])),
    "palette, quantized": (".png", lambda path, mask: Image.fromarray(np.uint8(mask * 255)).quantize(4).save(path)),
    "palette, BMP": (".bmp", _palette(VOC + [0] * (768 - len(VOC)))),
    "palette, TIFF": (".tif", _palette(VOC)),
    "GIF": (".gif", _palette(VOC)),
    "red on black": (".png", _painted((255, 0, 0))),
    "blue on black": (".png", _painted((0, 0, 255))),
    "dark red on black": (".png", _painted((64, 0, 0))),
    "red on white": (".png", _painted((255, 0, 0), (255, 255, 255))),
    "several colors on black": (".png", _image(lambda _: np.dstack([IDS * np.uint8(40), IDS % 2 * 200, IDS * 0]))),
    "16-bit red on black": (
        ".png",
        lambda p, m: cv2.imwrite(str(p), np.dstack([m * 0, m * 0, m * 65535]).astype(np.uint16)),
    ),
    "cut-out photo on black": (".png", _image(lambda mask: (COLORS // 2 + 50) * mask[..., None].astype(np.uint8))),
    "alpha, white": (".png", _alpha((255, 255, 255))),
    "alpha, black": (".png", _alpha((0, 0, 0))),
    "alpha, red": (
        ".webp",
        lambda path, mask: (
            _alpha((255, 0, 0))(path.with_suffix(".png"), mask)
            or Image.open(path.with_suffix(".png")).save(path, lossless=True)
        ),
    ),
    "alpha, photo": (".png", _alpha(COLORS)),
    "opaque alpha": (".png", _image(lambda mask: np.dstack([*[mask * np.uint8(255)] * 3, np.full_like(IDS, 255)]))),
    "alpha around a painted mask": (
        ".png",
        _image(lambda m: np.dstack([*[m * np.uint8(255)] * 3, np.uint8(255 * (X > 4))])),
    ),
    "gray with alpha": (".png", _gray_and_alpha),
    "transparent ids of 0": (".png", _color_key),
    "JPEG, quality 30": (".jpg", _lossy("JPEG", 30)),
    "JPEG, quality 75": (".jpg", _lossy("JPEG", 75)),
    "JPEG, quality 95": (".jpeg", _lossy("JPEG", 95)),
    "WebP, quality 50": (".webp", _lossy("WEBP", 50, lambda mask: np.uint8(255 * mask[..., None]).repeat(3, 2))),
    "WebP, lossless": (".webp", lambda path, _: Image.fromarray(IDS[..., None].repeat(3, 2)).save(path, lossless=True)),
    "JPEG, green": (".jpg", _lossy("JPEG", 90, lambda mask: np.uint8(mask[..., None] * np.array([0, 255, 0])))),
}
CLOSE = {
    "JPEG as PNG, quality 30": (".png", _lossy("JPEG", 30)),
    "JPEG as PNG, quality 75": (".png", _lossy("JPEG", 75)),
    "JPEG as PNG, quality 95": (".png", _lossy("JPEG", 95)),
    "WebP as PNG, quality 75": (".png", _lossy("WEBP", 75, lambda mask: np.uint8(255 * mask[..., None]).repeat(3, 2))),
}
OUTLINES = {
    "gray": (".png", _image(lambda _: SOFT)),
    "RGB": (".png", _image(lambda _: SOFT[..., None].repeat(3, 2))),
    "16 bit": (".png", _image(lambda _: SOFT.astype(np.uint16) * 257)),
    "8 bits in 16": (".png", _image(lambda _: SOFT.astype(np.uint16))),
    "float": (".tif", _tiff(lambda _: SOFT.astype(np.float32) / 255)),
    "alpha": (".png", _image(lambda _: np.dstack([COLORS, SOFT]))),
    "red": (".png", _image(lambda _: np.dstack([SOFT, SOFT * 0, SOFT * 0]))),
    "palette": (".png", _palette([value for value in range(256) for _ in range(3)], SOFT)),
}


@pytest.fixture(autouse=True)
def _forget_reports():
    masks._reported.clear()


@pytest.mark.parametrize("coding", SHARP)
def test_a_mask_means_what_a_person_sees(tmp_path, coding):
    suffix, write = SHARP[coding]
    write(tmp_path / f"a{suffix}", MASK)
    truth = MASK | OUTLINE if "outline" in coding else MASK
    mask = read_mask(tmp_path / f"a{suffix}")
    assert mask.dtype == torch.float32
    wrong = (mask != torch.from_numpy(truth).float()).float().mean()
    # Compression moves the outline, which is 2 % of the pixels, by a fraction of a pixel.
    assert wrong <= (0.01 if suffix in (".jpg", ".jpeg") or "quality" in coding else 0)


@pytest.mark.parametrize("coding", CLOSE)
def test_noise_of_a_compression_is_removed(tmp_path, coding):
    suffix, write = CLOSE[coding]
    write(tmp_path / f"a{suffix}", MASK)
    mask, truth = read_mask(tmp_path / f"a{suffix}"), torch.from_numpy(MASK).float()
    assert ((mask > 0.5) != (truth > 0.5)).float().mean() < 0.01
    assert (mask != truth).float().mean() < 0.03


@pytest.mark.parametrize("coding", OUTLINES)
def test_soft_outlines_stay_soft(tmp_path, coding):
    suffix, write = OUTLINES[coding]
    write(tmp_path / f"a{suffix}", MASK)
    assert (read_mask(tmp_path / f"a{suffix}") - torch.from_numpy(SOFT / 255).float()).abs().max() < 1e-6


def test_a_blurred_mask_stays_soft(tmp_path):
    blurred = np.uint8(ndimage.gaussian_filter(MASK * 255.0, 3).round())
    Image.fromarray(blurred).save(tmp_path / "a.png")
    assert (read_mask(tmp_path / "a.png") - torch.from_numpy(blurred / 255).float()).abs().max() < 1e-6


REFUSED = {
    "photo": (".png", _image(lambda _: COLORS // 2 + 1), "no background"),
    "transparent": (".png", _image(lambda mask: np.dstack([COLORS, mask * np.uint8(0)])), "transparent everywhere"),
    "NaN": (".tif", _tiff(lambda mask: np.where(mask, np.nan, 0).astype(np.float32)), "NaN"),
    "negative": (".tif", _tiff(lambda mask: -mask.astype(np.int16)), "below 0"),
    "text": (".png", lambda path, _: path.write_text("no mask"), "cannot be read"),
    "empty file": (".png", lambda path, _: path.touch(), "is empty"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_mask_is_refused(tmp_path, kind):
    suffix, write, words = REFUSED[kind]
    write(tmp_path / f"a{suffix}", MASK)
    for read in (read_mask, read_object_mask, read_defect_mask):
        with pytest.raises(ValueError, match=words) as information:
            read(tmp_path / f"a{suffix}")
        assert f"a{suffix}" in str(information.value)


def test_a_mask_of_nothing_is_refused_for_an_object_and_reported_for_a_defect(tmp_path, caplog):
    Image.fromarray(IDS * 0).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png covers nothing"):
        read_object_mask(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        assert not any(read_defect_mask(tmp_path / "a.png").any() for _ in range(2))
    (record,) = caplog.records
    assert "a.png of a defect covers nothing" in record.getMessage()


def test_a_mask_of_everything_is_reported(tmp_path, caplog):
    Image.fromarray(IDS * 0 + 2).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        assert read_object_mask(tmp_path / "a.png").all()
        assert read_defect_mask(tmp_path / "a.png").all()
    assert [record.getMessage().count("covers everything") for record in caplog.records] == [1, 1]


def test_an_inverted_mask_is_reported_once(tmp_path, caplog):
    for name in ("a", "b"):
        Image.fromarray(np.uint8(255 - 255 * MASK)).save(tmp_path / f"{name}.png")
        with caplog.at_level(logging.WARNING):
            read_object_mask(tmp_path / f"{name}.png")
    (record,) = caplog.records
    assert "a.png covers the border" in record.getMessage()


def test_defect_masks_are_binary_and_united(tmp_path):
    for name, mask in (("a", MASK & (X > 40)), ("b", MASK & (X < 50)), ("c", IDS * 0)):
        _lossy("JPEG", 50)(tmp_path / f"{name}.png", mask)
    union = read_defect_mask(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png")
    assert set(union.unique().tolist()) == {0.0, 1.0}
    assert (union.bool() != torch.from_numpy(MASK)).float().mean() < 0.01


def _photos(tmp_path, **alphas):
    for name, alpha in alphas.items():
        pixels = (
            COLORS
            if alpha is None
            else np.dstack([COLORS, np.full_like(IDS, 255) if alpha == "opaque" else MASK * np.uint8(255)])
        )
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return [(tmp_path / f"{name}.png", None) for name in alphas]


def test_images_with_masks_or_without_are_all_used(tmp_path, caplog):
    photos = _photos(tmp_path, a=None, b="opaque", c=None)
    assert images_with_masks(photos) == [True] * 3
    assert images_with_masks([(path, path) for path, _ in photos]) == [True] * 3
    assert images_with_masks(_photos(tmp_path, d="cut", e="cut")) == [True] * 2
    assert not caplog.records


def test_a_few_images_without_mask_are_left_out_and_reported(tmp_path, caplog):
    photos = _photos(tmp_path, a="cut", b="cut", c=None, d="cut", e=None, f="opaque", g="cut")
    photos[4] = (photos[4][0], photos[4][0])
    with caplog.at_level(logging.WARNING):
        assert images_with_masks(photos) == [True, True, False, True, True, False, True]
    (record,) = caplog.records
    assert "2 of 7 images" in record.getMessage()
    assert "c.png, f.png" in record.getMessage()


def test_many_images_without_mask_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 of 3 images in .* no mask of the object: b\.png, c\.png"):
        images_with_masks(_photos(tmp_path, a="cut", b=None, c=None))


@pytest.mark.parametrize("name", ["photo.png", "photo.PNG", "photo.tif", "photo.JPG.png", "photo_mask.png"])
def test_a_mask_is_named_like_its_image(tmp_path, name):
    (tmp_path / name).touch()
    assert mask_of_image(tmp_path, tmp_path / "images/photo.JPG") == tmp_path / name
    assert mask_of_image(tmp_path, tmp_path / "images/other.JPG") == tmp_path / "other.png"


def test_two_masks_of_one_image_are_refused_and_the_image_is_no_mask(tmp_path):
    for name in ("photo.png", "photo_mask.png"):
        Image.new("L", (8, 8), 255).save(tmp_path / name)
    assert mask_of_image(tmp_path, tmp_path / "photo.png") == tmp_path / "photo_mask.png"
    with pytest.raises(ValueError, match=r"photo\.jpg has 2 masks, .*photo\.png and photo_mask\.png"):
        mask_of_image(tmp_path, tmp_path / "images/photo.jpg")
