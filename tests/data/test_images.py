"""Every file becomes RGB or a broken sample; transforms equal Pillow's."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from blip2_jax.data.images import (
    ImageConfig,
    crop_box,
    decode_image,
    evaluation_image,
    fast_bicubic,
    training_image,
)
from blip2_jax.data.sources.base import BrokenSample
from tests.support.generated_data import encoded, picture


@pytest.mark.parametrize(
    "mode, kind",
    [
        ("RGB", "PNG"),
        ("RGB", "JPEG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("1", "PNG"),
        ("YCbCr", "JPEG"),
        ("CMYK", "TIFF"),
    ],
)
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode, kind):
    data = encoded(picture(1).convert(mode), kind)
    pixels = decode_image(data, "key")
    assert pixels.shape == (30, 40, 3) and pixels.dtype == np.uint8
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("dtype, kind", [(np.uint16, "PNG"), (np.int32, "TIFF")])
def test_sixteen_bit_images_keep_the_high_byte(dtype, kind):
    values = (np.arange(20).reshape(4, 5) * 3000).astype(dtype)
    pixels = decode_image(encoded(Image.fromarray(values), kind), "key")
    np.testing.assert_array_equal(pixels[..., 0], values >> 8)


def test_transparent_palettes_and_first_frames():
    palette = picture(2).convert("P")
    data = encoded(palette, "PNG", transparency=3)
    np.testing.assert_array_equal(decode_image(data, "key"), palette.convert("RGB"))
    frames = [picture(n).convert("P") for n in (3, 4)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data, "key"), frames[0].convert("RGB"))


def _huge_png() -> bytes:
    """A file whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        sum_ = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", sum_)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data, cause",
    [
        (b"", "empty image file"),
        (b"<html>not found</html>", "not an image"),
        (encoded(picture(5, 200, 150), "JPEG")[:2000], "truncated image"),
        (encoded(picture(5, 200, 150), "PNG")[:2000], "truncated image"),
        (_huge_png(), "huge image"),
    ],
)
def test_broken_files_have_a_cause(data, cause):
    with pytest.raises(BrokenSample) as caught:
        decode_image(data, "the/key.jpg")
    assert (caught.value.cause, caught.value.key) == (cause, "the/key.jpg")


def test_jpegs_are_decoded_at_reduced_scale_if_large_enough():
    data = encoded(picture(6, 1600, 1200), "JPEG")
    assert decode_image(data, "key").shape == (1200, 1600, 3)
    assert decode_image(data, "key", at_least=300).shape == (300, 400, 3)
    assert decode_image(data, "key", at_least=301).shape == (600, 800, 3)
    config = ImageConfig(size=224)
    assert config.at_least == 366  # the smallest crop has 224 pixels
    assert ImageConfig(size=224, augment=False).at_least == 0
    assert ImageConfig(size=224, pillow=True).at_least == 0


def test_reduced_decoding_hardly_changes_the_result():
    data = encoded(picture(6, 1600, 1200), "JPEG", quality=95)
    full = evaluation_image(decode_image(data, "key"), 64).astype(int)
    reduced = evaluation_image(decode_image(data, "key", 300), 64).astype(int)
    assert np.abs(full - reduced).mean() < 2


@pytest.mark.parametrize("size", [(311, 207), (64, 64)])
def test_evaluation_equals_pillow(size):
    image = picture(7, *size)
    expected = image.resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(evaluation_image(np.asarray(image), 64), expected)


def test_training_crops_and_flips():
    pixels = np.asarray(picture(8, 160, 120))
    config = ImageConfig(size=32)
    rng = np.random.default_rng(0)
    results = [training_image(pixels, config, rng) for _ in range(8)]
    assert all(r.shape == (32, 32, 3) and r.dtype == np.uint8 for r in results)
    assert len({r.tobytes() for r in results}) == 8
    again = training_image(pixels, config, np.random.default_rng(0))
    np.testing.assert_array_equal(again, results[0])
    plain = training_image(pixels, ImageConfig(size=32, augment=False), rng)
    np.testing.assert_array_equal(plain, evaluation_image(pixels, 32))


def test_crops_equal_pillows_resized_and_mirrored_crops():
    pixels = np.asarray(picture(8, 160, 120))
    config = ImageConfig(size=32, flip=1.0, pillow=True)
    result = training_image(pixels, config, np.random.default_rng(3))
    box = crop_box(120, 160, 0.5, np.random.default_rng(3))
    top, left, height, width = box
    crop = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    expected = np.asarray(crop.resize((32, 32), Image.Resampling.BICUBIC))[:, ::-1]
    np.testing.assert_array_equal(result, expected)


def _encodings() -> list[bytes]:
    """JPEGs of odd and even sides with all chroma subsamplings and orientations."""
    turned = Image.Exif()
    turned[0x112] = 6
    options = [{"subsampling": kind} for kind in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")]
    options += [{"progressive": True}, {"exif": turned}, {"restart_marker_rows": 1}]
    options += [{"keep_rgb": True, "subsampling": "4:4:4"}, {"quality": 20}]
    return [
        encoded(picture(number, *sides), "JPEG", **more)
        for number, more in enumerate(options)
        for sides in ((37, 61), (16, 16), (161, 83))
    ]


@pytest.mark.parametrize("at_least", [1, 8, 30, 80])
def test_opencv_decodes_as_pillow_does(at_least):
    for data in [*_encodings(), encoded(picture(9).convert("CMYK"), "JPEG")]:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(image.mode, (at_least, at_least))
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(decode_image(data, "key", at_least), expected)


@pytest.mark.parametrize("damage", ["cut", "cut and closed", "zeros", "flipped"])
def test_broken_jpegs_have_the_same_cause_in_training_and_evaluation(damage):
    whole = encoded(picture(5, 200, 150), "JPEG", progressive=damage == "flipped")
    for cut in range(700, len(whole) - 60, 400):
        data = {
            "cut": whole[:cut],
            "cut and closed": whole[:cut] + whole[-2:],
            "zeros": whole[:cut] + bytes(50) + whole[cut + 50 :],
            "flipped": whole[:cut] + bytes([whole[cut] ^ 16]) + whole[cut + 1 :],
        }[damage]
        full, training = _outcome(data, 0), _outcome(data, 140)
        assert full[0] == training[0]
        np.testing.assert_array_equal(full[1], training[1])


def _outcome(data: bytes, at_least: int) -> tuple[str, np.ndarray]:
    try:
        return "", decode_image(data, "key", at_least)
    except BrokenSample as error:
        return error.cause, np.zeros(0)


@pytest.mark.parametrize("width, height", [(70, 64), (96, 80), (127, 100), (300, 130)])
def test_fast_resampling_has_no_aliasing(width, height):
    """The finest stripes, on which plain bicubic interpolation creates patterns."""
    rows, columns = np.mgrid[:height, :width]
    stripes = np.stack([columns % 2, rows % 2, (rows + columns) % 2], -1) * 60 + 98
    stripes = stripes.astype(np.uint8)
    exact = np.asarray(
        Image.fromarray(stripes).resize((64, 64), Image.Resampling.BICUBIC), int
    )
    plain = cv2.resize(stripes, (64, 64), interpolation=cv2.INTER_CUBIC)
    fast = np.abs(fast_bicubic(stripes, 64) - exact)
    assert fast.mean() < 0.4 * np.abs(plain - exact).mean()


def test_fast_resampling_keeps_the_brightness():
    for side in range(40, 200):
        grey = np.full((side, 220 - side, 3), 201, np.uint8)
        assert (fast_bicubic(grey, 64) == 201).all()


@pytest.mark.parametrize("width", [48, 90, 160, 640])
def test_fast_resampling_is_close_to_pillows(width):
    """The same crop, enlarged, reduced slightly and reduced strongly."""
    pixels = np.asarray(picture(8, width, width))
    fast, exact = (
        training_image(
            pixels, ImageConfig(size=64, pillow=pillow), np.random.default_rng(3)
        ).astype(int)
        for pillow in (False, True)
    )
    apart = np.abs(fast - exact)
    assert 0 < apart.mean() < 2
    elsewhere = np.abs(np.roll(fast, 1, axis=1) - exact)
    assert apart.mean() < elsewhere.mean() / 2


@pytest.mark.parametrize("height, width", [(100, 100), (60, 200), (1, 500), (7, 1)])
def test_crops_fit_and_keep_their_limits(height, width):
    rng = np.random.default_rng(1)
    areas = []
    for _ in range(300):
        top, left, crop_height, crop_width = crop_box(height, width, 0.5, rng)
        assert 0 <= top <= height - crop_height and 0 <= left <= width - crop_width
        assert crop_height > 0 and crop_width > 0
        areas.append(crop_height * crop_width / (height * width))
        if height == width:
            assert 0.74 < crop_width / crop_height < 1.35 and areas[-1] > 0.48
    if height == width:
        assert 0.65 < np.mean(areas) < 0.8


def test_half_of_the_monochrome_images_have_one_tint_and_half_are_inverted():
    pixels = np.asarray(picture(3).resize((32, 32)))
    luma = np.asarray(Image.fromarray(pixels).convert("L"), float).ravel()
    config = ImageConfig(size=len(pixels), augment=False, monochrome=1.0)
    upright, whole, count = 0, 0, 60
    for seed in range(count):
        image = training_image(pixels, config, np.random.default_rng(seed))
        channels = image.reshape(-1, 3).astype(float).T
        tint = channels.max(axis=1) / channels.max()
        shades = tint[:, None] * channels.max(axis=0)
        whole += tint.min() < 0.52 and np.abs(channels - shades).max() < 1.5
        upright += np.corrcoef(channels.max(0), luma)[0, 1] > 0
        assert not np.array_equal(image, pixels)
    assert count / 4 < upright < 3 * count / 4
    assert count / 4 < whole < 3 * count / 4
    never = training_image(
        pixels, ImageConfig(size=len(pixels), augment=False), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(never, pixels)
