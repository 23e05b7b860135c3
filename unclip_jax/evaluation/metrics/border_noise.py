"""Border noise: how far the edge of an image is from one color.

For pictures on a plain background, such as icons: what a decoder leaves of the noise it
began with shows there first.
"""

import dataclasses

import numpy as np

from unclip_jax.evaluation.metrics import Metric, Quantity


def border(pixels):
    """The outermost pixels of (N, H, W, C): (N, 2 (H + W) - 4, C)."""
    return np.concatenate(
        [pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]], axis=1
    )


def border_noise(images):
    """How far the border of images (N, H, W, 3) is from one color: float64 (N,).

    In gray levels, 0 for a plain background: 1.4826 times the median distance from the
    median, the standard deviation if it were normal, and the mean of the three
    channels. A glyph that touches less than half of the border does not count.
    """
    pixels = border(np.asarray(images, np.float64))
    distance = np.abs(pixels - np.median(pixels, axis=1, keepdims=True))
    return 1.4826 * np.median(distance, axis=1).mean(axis=1)


@dataclasses.dataclass(frozen=True)
class BorderNoise(Metric):
    """The noise of plain backgrounds; see `border_noise`."""

    quantities = {
        "": Quantity(
            "gray levels by which the border is not one color", better="lower"
        ),
    }

    def __call__(self, samples):
        pieces = samples.images.pieces(0, len(samples), most=512)
        return {"": np.concatenate([border_noise(images) for images in pieces])}
