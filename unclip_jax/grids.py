"""Grids of images: edge to edge, or with captions that people can read."""

import bisect
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from unclip_jax.errors import UsageError
from unclip_jax.fonts import Typeface
from unclip_jax.images import check_image, enlarge

MIN_TILE = 96  # pixels; smaller pictures are enlarged so that captions fit under them
GAP = 8
FONT_SIZE = 12


def caption_grid(
    images: np.ndarray | Sequence[np.ndarray],
    captions: Sequence[str] = (),
    columns: int | None = None,
    min_tile: int = MIN_TILE,
) -> np.ndarray:
    """Lays pictures out in rows, each with its caption under it.

    Args:
      images: N uint8 pictures (H, W, 3), all of one size.
      captions: none, or one per picture; long ones are wrapped to the tile's width.
      columns: pictures per row; by default a little more than sqrt(N), chosen to
        leave few places empty.
      min_tile: smaller pictures are enlarged by a whole factor, without smoothing.

    Returns:
      uint8 (height, width, 3).

    Raises:
      UsageError: no pictures, pictures of other types or sizes, or another number of
        captions.
    """
    images = [check_image(image) for image in images]
    if not images:
        raise UsageError("a grid needs at least one picture, got none")
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise UsageError(f"the pictures of a grid differ in size: {sorted(sizes)}")
    if captions and len(captions) != len(images):
        raise UsageError(f"{len(captions)} captions for {len(images)} pictures")
    columns = columns or _columns(len(images))
    rows = math.ceil(len(images) / columns)
    factor = max(1, math.ceil(min_tile / min(images[0].shape[:2])))
    height, width = (factor * side for side in images[0].shape[:2])

    font = Typeface(FONT_SIZE)
    texts = [wrap(caption, font, width) for caption in captions]
    lines = max((len(text) for text in texts), default=0)
    step_y = height + GAP + (lines * font.line_height + GAP // 2 if lines else 0)
    step_x = width + GAP
    page = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), "white")
    draw = ImageDraw.Draw(page)
    for i, image in enumerate(images):
        x, y = GAP + i % columns * step_x, GAP + i // columns * step_y
        tile = enlarge(image, factor)
        page.paste(Image.fromarray(tile), (x, y))
        # white pictures need an edge on the white page
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=(208, 208, 208))
        if texts:
            font.draw(draw, (x, y + height + 2), texts[i])
    return np.asarray(page)


def make_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W, 3) -> (rows * H, columns * W, 3), white where images are missing."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    blank = np.full((rows * columns - n, h, w, c), 255, images.dtype)
    tiles = np.concatenate([images, blank]).reshape(rows, columns, h, w, c)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)


def wrap(text: str, font: Typeface, width: float, max_lines: int = 6) -> list[str]:
    """Breaks text into lines of at most `width` pixels, between words if possible.

    What does not fit into `max_lines` is cut, which "..." shows.
    """
    lines: list[str] = []
    current = ""
    for word in text[: 400 * max_lines].split():  # the rest would not fit anyway
        joined = f"{current} {word}".strip()
        if font.getlength(joined) <= width:
            current = joined
            continue
        if current:
            lines.append(current)
        while len(word) > 1 and font.getlength(word) > width:  # one very long word
            fits = bisect.bisect_right(
                range(len(word)), width, key=lambda n: font.getlength(word[:n])
            )
            fits = max(1, fits - 1)
            lines.append(word[:fits])
            word = word[fits:]
        current = word
    lines = lines + [current] if current else lines
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font.getlength(last + "...") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], last + "..."]


def _columns(count: int) -> int:
    few, many = math.ceil(math.sqrt(count)), math.ceil(math.sqrt(2 * count))
    return min(range(many, few - 1, -1), key=lambda n: -count % n)
