"""Grids and PNG files."""

import numpy as np
import pytest

from unclip_jax import grids
from unclip_jax.fonts import Typeface


def tiles(n, size=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_small_pictures_are_enlarged_without_smoothing():
    (image,) = tiles(1)
    page = grids.caption_grid([image], ["a cat"])
    gap, factor = grids.GAP, 12  # 8 -> 96
    tile = page[gap : gap + 96, gap : gap + 96]
    np.testing.assert_array_equal(tile, image.repeat(factor, 0).repeat(factor, 1))
    caption = page[gap + 98 :, gap:]
    assert caption.min() < 100  # black text on white
    without = grids.caption_grid([image])
    assert without.shape[0] < page.shape[0] and without.shape[1] == page.shape[1]


def test_big_pictures_keep_their_pixels():
    image = tiles(1, 128)[0]
    page = grids.caption_grid([image])
    assert page.shape == (128 + 2 * grids.GAP, 128 + 2 * grids.GAP, 3)


def test_rows_and_columns():
    images = tiles(5, 96)
    page = grids.caption_grid(images, columns=2)
    step = 96 + grids.GAP
    assert page.shape == (3 * step + grids.GAP, 2 * step + grids.GAP, 3)
    second_row = page[grids.GAP + step : grids.GAP + step + 96]
    np.testing.assert_array_equal(second_row[:, grids.GAP : grids.GAP + 96], images[2])


@pytest.mark.parametrize(
    "count, columns", [(1, 1), (2, 2), (3, 3), (5, 3), (12, 4), (16, 4), (32, 8)]
)
def test_default_rows_are_filled(count, columns):
    page = grids.caption_grid(tiles(count, 96))
    assert page.shape[1] == columns * (96 + grids.GAP) + grids.GAP


@pytest.mark.slow
def test_captions_fit_under_their_tile():
    font = Typeface(grids.FONT_SIZE)
    text = "a very long caption about a light blue umbrella on a dark teal background"
    lines = grids.wrap(text, font, 96)
    assert " ".join(lines) == text
    assert max(map(font.getlength, lines)) <= 96
    lines = grids.wrap("x" * 10_000, font, 96)
    assert len(lines) == 6 and lines[-1].endswith("...")
    assert max(map(font.getlength, lines)) <= 96
    assert grids.wrap("", font, 96) == []
    assert grids.wrap("ab cd", font, 1)[0] == "a"  # never stuck


def test_bad_grids():
    with pytest.raises(ValueError, match="at least one picture"):
        grids.caption_grid([])
    with pytest.raises(ValueError, match="1 captions for 2 pictures"):
        grids.caption_grid(tiles(2), ["a"])
    with pytest.raises(ValueError, match="uint8"):
        grids.caption_grid(tiles(2).astype(np.float32))
    with pytest.raises(ValueError, match="differ in size"):
        grids.caption_grid([tiles(1)[0], tiles(1, 9)[0]])
