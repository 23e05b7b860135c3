"""Image files of several formats, as a folder of images is read."""

import numpy as np
from PIL import Image

from unclip_jax.images import find_images, read_image

FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tif")


def make(folder):
    """One image in each format."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), np.uint8)
    for name in FORMATS:
        Image.fromarray(pixels).save(folder / f"image.{name}")


def open_it(folder):
    """Their pixels."""
    return [read_image(path) for path in find_images([folder])]
