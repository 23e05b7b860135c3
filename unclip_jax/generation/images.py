"""Pictures from files, scaled and cropped to what a model takes."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unclip_jax.images import fit

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_pictures(paths: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """Files as given; folders become the picture files in them, by name.

    A folder's grid.png, which shows the others, is left out.

    Raises FileNotFoundError for what is not there, or a folder without pictures.
    """
    found = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            inside = [
                file
                for file in sorted(path.iterdir())
                if file.suffix.lower() in SUFFIXES and file.name != "grid.png"
            ]
            if not inside:
                raise FileNotFoundError(f"folder {str(path)!r} holds no pictures")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"picture {str(path)!r} does not exist")
    return found


def read_image(path: str | os.PathLike, size: int | None = None) -> np.ndarray:
    """The picture in a file as one sees it: uint8 (H, W, 3), `fit` to size if given.

    The camera's rotation is applied; transparent parts become white; of an animation
    the first frame is taken; 16 bits and more are scaled to 8.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is not a picture, broken, or larger than Pillow's limit
        (a file of a few bytes can announce billions of pixels).
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":  # 16 and 32 bits
                image = _to_8_bits(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            pixels = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"picture {str(path)!r} does not exist") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{str(path)!r} is too large a picture: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is not a readable picture: {error}") from error
    return pixels if size is None else fit(pixels, size)


def _to_8_bits(image):
    """Grey of 16 or 32 bits, or floats, to 8 bits."""
    grey = np.asarray(image, np.float64)
    if image.mode.startswith("I;16"):
        top = 65535.0
    elif image.mode == "F" and grey.max() <= 1:
        top = 1.0
    else:  # 32 bits say nothing about what white is
        top = 65535.0 if grey.max() > 255 else 255.0
    return Image.fromarray((grey / top * 255).clip(0, 255).round().astype(np.uint8))
