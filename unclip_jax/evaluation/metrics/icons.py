"""Is the image what the sentence says?  Read from the pixels of an icon.

An icon is one glyph in one colour on another, so three plain questions have answers
that need no neural network: is the background the named colour, is the glyph the
named colour, is the glyph the named one.  Each is read without looking at the wanted
answer:

  background   the median of the border pixels, nearest named colour.
  glyph colour the median of the pixels farthest from that background, nearest named
               colour; none when nothing stands out.
  glyph        every pixel is projected on the axis from background to glyph colour;
               the resulting soft mask is correlated (zero mean, unit norm, small
               shifts allowed) with the masks of the whole vocabulary.  Since both
               colours are the measured ones, a wrong colour does not cost the shape.
               Where the source varies place and size, masks of several sizes are
               tried, with their centre of mass on the image's.
"""

import dataclasses

import numpy as np
from PIL import Image

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.border_noise import border

MIN_CONTRAST = 24.0  # RGB distance below which nothing stands out
NONE = -1  # "no glyph seen"

# What is asked of an image, in the order of reports.
CHECKS = ("background", "glyph_colour", "glyph_top1", "glyph_top5", "all")


@dataclasses.dataclass(frozen=True)
class Readings:
    """What the pixels of N images say; numbers index colour and noun lists.

    Attributes:
      background: int (N,) colour number.
      glyph_colour: int (N,) colour number, or NONE.
      glyphs: int (N, top) noun numbers, best first, or NONE throughout.
    """

    background: np.ndarray
    glyph_colour: np.ndarray
    glyphs: np.ndarray


def join_readings(parts):
    """One Readings of several, in their order."""
    names = [field.name for field in dataclasses.fields(Readings)]
    return Readings(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def read_icons(images, palette, masks, max_shift=2, top=5, centred=False):
    """Read background, glyph colour and glyph from images of icons.

    Args:
      images: uint8 (N, H, W, 3).
      palette: (C, 3) RGB of the named colours, 0 to 255.
      masks: (V, H, W) coverage of every glyph of the vocabulary, any positive scale;
        alternatives of one glyph (e.g. sizes) may be given as (V, A, H, W).
      max_shift: pixels a glyph may be off its mask's place, in x and in y.
      top: how many glyphs to name.
      centred: whether the masks are `placed`: the glyph may be anywhere.

    Returns:
      Readings.

    Raises:
      UsageError: shapes that do not fit, images that are not uint8.
    """
    images, palette = np.asarray(images), np.asarray(palette, dtype=np.float64)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UsageError(
            f"images must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}"
        )
    masks = np.asarray(masks, dtype=np.float32)
    masks = masks[:, None] if masks.ndim == 3 else masks
    if masks.shape[2:] != images.shape[1:3]:
        raise UsageError(
            f"images are {images.shape[1]}x{images.shape[2]} but glyph masks "
            f"{masks.shape[-2]}x{masks.shape[-1]}; use the source at the images' size"
        )
    pixels = images.astype(np.float64)
    back = background_rgb(pixels)
    glyph, seen = glyph_rgb(pixels, back)
    glyph_colour = np.where(seen, nearest_colour(glyph, palette), NONE)
    soft = soft_masks(pixels, back, glyph)
    if centred:
        soft = np.stack([centre(mask) for mask in soft])
    glyphs = rank_glyphs(soft, masks, max_shift, top)
    return Readings(
        background=nearest_colour(back, palette),
        glyph_colour=glyph_colour,
        glyphs=np.where(seen[:, None], glyphs, NONE),
    )


def placed(masks, jitter):
    """Alternatives of masks (V, H, W) for glyphs of any place and size.

    Args:
      masks: of the centred glyphs.
      jitter: sizes are [1 - jitter, 1] of the mask's.

    Returns:
      (V, A, H, W) float32: sizes less than 8% apart, with the centre of mass in the
      middle.
    """
    scales = np.linspace(1.0, 1.0 - jitter, 1 + int(np.ceil(jitter / 0.08)))
    masks = np.asarray(masks, np.float32)
    return np.array([[centre(_shrink(mask, s)) for s in scales] for mask in masks])


def _shrink(mask, scale):
    """A mask (H, W), smaller about its middle."""
    height, width = mask.shape
    h, w = round(height * scale), round(width * scale)
    top, left = (height - h) // 2, (width - w) // 2
    small = Image.fromarray(mask).resize((w, h), Image.Resampling.BICUBIC)
    out = np.zeros_like(mask)
    out[top : top + h, left : left + w] = np.asarray(small)
    return out


def centre(mask):
    """A mask (H, W) moved by whole pixels until its centre of mass is in the middle.

    What is below half of its peak does not count, noise for instance.
    """
    seen = np.where(mask > 0.5 * mask.max(), mask, 0)
    total = seen.sum()
    if not total:
        return mask
    height, width = mask.shape
    y = (seen.sum(axis=1) @ np.arange(height)) / total
    x = (seen.sum(axis=0) @ np.arange(width)) / total
    shift = round((height - 1) / 2 - y), round((width - 1) / 2 - x)
    return np.roll(mask, shift, axis=(0, 1))


def check_icons(readings, background, glyph_colour, glyph):
    """Compare readings with what was wanted.

    Args:
      readings: Readings of N images.
      background, glyph_colour, glyph: int (N,) the wanted numbers.

    Returns:
      {check: bool (N,)} for every check of CHECKS; "all" is background, colour and
      glyph (top 1) at once.
    """
    hits = readings.glyphs == np.asarray(glyph)[:, None]
    checks = {
        "background": readings.background == np.asarray(background),
        "glyph_colour": readings.glyph_colour == np.asarray(glyph_colour),
        "glyph_top1": hits[:, 0],
        "glyph_top5": hits[:, :5].any(axis=1),
    }
    checks["all"] = checks["background"] & checks["glyph_colour"] & checks["glyph_top1"]
    return checks


def background_rgb(pixels):
    """Median of the outermost ring of pixels (N, H, W, 3): float64 (N, 3)."""
    return np.median(border(pixels), axis=1)


def glyph_rgb(pixels, back):
    """Median of the pixels farthest from the background.

    Thin strokes are blends with the background, so only those at 80% or more of a
    high quantile of the distances count (a quantile: one noisy pixel is not a glyph).

    Returns:
      (float64 (N, 3), bool (N,) whether anything stands out at all).
    """
    n = pixels.shape[0]
    flat = pixels.reshape(n, -1, 3)
    distance = np.linalg.norm(flat - back[:, None], axis=-1)
    far = np.quantile(distance, 0.98, axis=1)
    colour = np.empty((n, 3))
    for i in range(n):
        colour[i] = np.median(flat[i][distance[i] >= 0.8 * far[i]], axis=0)
    return colour, far >= MIN_CONTRAST


def nearest_colour(rgb, palette):
    """Number of the nearest palette (C, 3) entry for each rgb (N, 3): int (N,)."""
    return np.linalg.norm(rgb[:, None] - palette[None], axis=-1).argmin(axis=1)


def soft_masks(pixels, back, glyph):
    """Projection of pixels (N, H, W, 3) on the axis back -> glyph, in [0, 1]."""
    axis = glyph - back
    length = np.maximum((axis * axis).sum(axis=-1), 1e-6)
    along = np.einsum("nhwc,nc->nhw", pixels - back[:, None, None], axis)
    return np.clip(along / length[:, None, None], 0.0, 1.0)


def rank_glyphs(soft, masks, max_shift, top):
    """Best glyphs by normalised correlation: int (N, top), best first.

    Args:
      soft: (N, H, W) masks seen in the images.
      masks: (V, A, H, W) masks of the vocabulary, A alternatives of each.
    """
    n, height, width = soft.shape
    vocabulary, alternatives = masks.shape[:2]
    templates = _normalised(masks.reshape(-1, height * width))
    best = np.full((n, vocabulary), -np.inf, dtype=np.float32)
    for dy in range(-max_shift, max_shift + 1):
        for dx in range(-max_shift, max_shift + 1):
            moved = np.roll(soft, (dy, dx), axis=(1, 2)).reshape(n, -1)
            scores = _normalised(moved) @ templates.T
            scores = scores.reshape(n, vocabulary, alternatives).max(axis=-1)
            np.maximum(best, scores, out=best)
    return np.argsort(-best, axis=1, kind="stable")[:, :top]


def _normalised(rows):
    """Zero mean, unit norm, float32; a constant row becomes zero."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(norm, 1e-6)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Icons(Metric):
    """What the pixels of icons say against their captions; see `check_icons`."""

    max_shift: int = 2

    paired = True
    quantities = {
        "background": Quantity("the background is the named colour", percent=True),
        "glyph_colour": Quantity("the glyph is the named colour", percent=True),
        "glyph_top1": Quantity(
            "the glyph looks most like the named one, of all glyphs", percent=True
        ),
        "glyph_top5": Quantity(
            "the named glyph is among the five most alike", percent=True
        ),
        "all": Quantity("background, colour and glyph all right", percent=True),
    }

    def __call__(self, samples):
        source = samples.source
        if not hasattr(source, "mask"):
            raise UsageError("the icons checks need config.data.source = 'icons'")
        names, nouns = list(source.colours), list(source.nouns)

        def read():
            palette = np.array([source.colours[name] for name in names])
            masks = np.stack([source.mask(noun) for noun in nouns])
            jitter = getattr(source, "jitter", 0.0)
            if jitter:
                masks = placed(masks, jitter)
            pieces = samples.images.pieces(0, len(samples), most=512)
            centred = bool(jitter)
            return join_readings(
                [
                    read_icons(images, palette, masks, self.max_shift, centred=centred)
                    for images in pieces
                ]
            )

        def targets(attribute, known):
            return [known.index(example[attribute]) for example in samples.rows]

        return check_icons(
            samples.cached(("icons", self.max_shift), read),
            background=targets("background", names),
            glyph_colour=targets("colour", names),
            glyph=targets("noun", nouns),
        )
