"""Any picture file becomes the right square; what cannot be is named."""

import io

import numpy as np
import pytest
from PIL import Image

from unclip_jax.data.sources import BadRecord, LeftOut
from unclip_jax.data.sources.image_source import decode


def encode(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(width, height):
    """Red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / (width - 1), 255 * y / (height - 1), 0 * x], -1)
    return pixels.round().astype(np.uint8)


def test_the_same_size_is_the_same_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(
        decode(encode(Image.fromarray(pixels)), 16, "k"), pixels
    )


@pytest.mark.parametrize("width, height", [(40, 16), (16, 40), (400, 200), (17, 16)])
def test_the_centre_is_cut_out(width, height):
    pixels = gradient(width, height)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = pixels[top : top + side, left : left + side].astype(np.float64)
    got = decode(encode(Image.fromarray(pixels)), 8, "k")
    assert got.shape == (8, 8, 3) and got.dtype == np.uint8
    # a smooth ramp's average over each eighth, but at the mirrored edges
    centres = (np.arange(8) + 0.5) * side / 8 - 0.5
    red = np.interp(centres, np.arange(side), square[0, :, 0])
    green = np.interp(centres, np.arange(side), square[:, 0, 1])
    assert np.abs(got[1:-1, 1:-1, 0] - red[None, 1:-1]).max() < 3
    assert np.abs(got[1:-1, 1:-1, 1] - green[1:-1, None]).max() < 3


def test_a_large_jpeg_decoded_small_is_the_same_picture():
    pixels = gradient(900, 600)
    data = encode(Image.fromarray(pixels), "JPEG", quality=95)
    whole = decode(encode(Image.fromarray(pixels)), 16, "k").astype(int)
    assert np.abs(decode(data, 16, "k") - whole).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = gradient(16, 16)
    # how a camera stores it so that the tag's turn makes it upright (EXIF 2.3)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(decode(data, 16, "k"), upright)


def test_every_mode_becomes_rgb():
    size = (8, 8)
    red = (200, 20, 10)
    cases = {
        "grey": (Image.new("L", size, 77), (77,) * 3),
        "one bit": (Image.new("1", size, 1), (255,) * 3),
        "palette": (Image.new("RGB", size, red).quantize(4), red),
        "half transparent": (Image.new("RGBA", size, (*red, 51)), (244, 208, 206)),
        "transparent": (Image.new("RGBA", size, (*red, 0)), (255,) * 3),
        "grey, transparent": (Image.new("LA", size, (9, 0)), (255,) * 3),
        "16 bits": (Image.fromarray(np.full(size, 0x8000, np.uint16)), (128,) * 3),
        "16 bits, dark": (Image.fromarray(np.full(size, 300, np.uint16)), (1,) * 3),
    }
    for name, (image, expected) in cases.items():
        got = decode(encode(image), 8, name)
        assert np.abs(got.astype(int) - expected).max() <= 1, (name, got[0, 0])
    see_through = Image.new("P", size, 3)
    see_through.putpalette([*range(30)])
    data = encode(see_through, transparency=3)
    assert (decode(data, 8, "palette with transparency") == 255).all()
    cmyk = Image.new("CMYK", size, (0, 255, 255, 0))  # full magenta and yellow: red
    got = decode(encode(cmyk, "JPEG", quality=95), 8, "cmyk").astype(int)
    assert np.abs(got - (255, 0, 0)).max() <= 8


def test_what_cannot_be_read_is_named():
    jpeg = encode(Image.fromarray(gradient(64, 64)), "JPEG")
    png = encode(Image.fromarray(gradient(64, 64)))
    for data in (jpeg[: len(jpeg) // 2], png[:-40], b"<html>gone</html>", b""):
        with pytest.raises(BadRecord, match="'the key'") as caught:
            decode(data, 16, "the key")
        assert not isinstance(caught.value, LeftOut)
    with pytest.raises(BadRecord, match="not an image"):
        decode(b"<html>gone</html>", 16, "k")


def test_filters():
    data = encode(Image.fromarray(gradient(60, 30)))
    decode(data, 8, "k", min_size=30, max_aspect=2)
    with pytest.raises(LeftOut, match="a side below min_size 31"):
        decode(data, 8, "k", min_size=31)
    with pytest.raises(LeftOut, match="an aspect ratio above max_aspect 1.9"):
        decode(data, 8, "k", max_aspect=1.9)


def test_small_images_are_no_targets_of_large_ones():
    """min_size = image_size: 300 pixels are left out, 1024 are as they were stored."""
    rng = np.random.default_rng(0)
    images = {
        side: rng.integers(0, 256, (side, side, 3), np.uint8) for side in (300, 1024)
    }
    small, large = (
        encode(Image.fromarray(image), "PNG", compress_level=1)
        for image in images.values()
    )
    with pytest.raises(LeftOut, match="a side below min_size 1024"):
        decode(small, 1024, "k", min_size=1024)
    np.testing.assert_array_equal(decode(large, 1024, "k", min_size=1024), images[1024])
