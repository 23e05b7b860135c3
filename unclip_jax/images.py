"""Pictures as CLIP sees them: the pixels of transformers' image processor."""

import numpy as np
from PIL import Image


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Scales the shorter side to `size` and cuts the centre square out.

    The pixels are those of transformers.CLIPImageProcessor before it normalises them
    (PIL's bicubic filter, which averages when it shrinks). A picture of the right size
    is left as it is.

    Args:
      image: uint8 (H, W, 3).
      size: side of the square.

    Returns:
      uint8 (size, size, 3).
    """
    if image.shape[:2] == (size, size):
        return image
    height, width = image.shape[:2]
    shorter = min(height, width)
    height, width = (int(size * side / shorter) for side in (height, width))
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    return np.asarray(scaled)[top : top + size, left : left + size]
