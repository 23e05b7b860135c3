"""Pictures from files, scaled and cropped to what a model takes."""

import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unclip_jax.interop.images import fit


def read_image(path: str | os.PathLike, size: int) -> np.ndarray:
    """The picture in a file as uint8 (size, size, 3): `fit` of what one sees.

    The camera's rotation is applied; transparent parts become white.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is not a picture, or broken.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":  # 16 and 32 bits
                grey = np.asarray(image, np.float64)
                top = 65535.0 if grey.max() > 255 else 255.0
                grey = (grey / top * 255).clip(0, 255)
                image = Image.fromarray(grey.round().astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return fit(np.asarray(image.convert("RGB")), size)
    except FileNotFoundError:
        raise FileNotFoundError(f"picture {str(path)!r} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{str(path)!r} is not a readable picture: {error}") from error
