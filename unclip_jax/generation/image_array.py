"""Images as UnCLIP gives them: arrays that save themselves and show in notebooks."""

import io
import math
import os
import pathlib

import numpy as np
from PIL import Image

from unclip_jax.errors import UsageError
from unclip_jax.grids import caption_grid
from unclip_jax.images import enlarge, save_image

SHOWN = 128  # pixels; smaller images are enlarged where they are shown
SHOWN_MOST = 100  # images of the grid that is shown


class ImageArray(np.ndarray):
    """uint8 (..., H, W, 3): an array in all respects, also of its elements and parts.

    `np.asarray(images)` is a plain one.
    """

    def save(self, path: str | os.PathLike) -> None:
        """Writes one image as .png or .webp; of several, a grid of them.

        A path without a suffix is a folder, which gets a file per image. Rows of
        images, such as those of `interpolate`, are rows of the grid.

        Raises UsageError for another suffix, or an array that holds no images.
        """
        path = pathlib.Path(path)
        if path.suffix:
            save_image(path, self._picture(self._images()))
            return
        for i, image in enumerate(self._images()):
            save_image(path / f"{i:06d}.png", image)

    def _repr_png_(self) -> bytes | None:
        """What notebooks show: the image, or a grid; None of what is no image."""
        if not self._holds_images() or not self.size:
            return None
        picture = self._picture(self._images()[:SHOWN_MOST])
        factor = math.ceil(SHOWN / min(picture.shape[:2]))
        file = io.BytesIO()
        Image.fromarray(enlarge(picture, max(1, factor))).save(file, "png")
        return file.getvalue()

    def _holds_images(self) -> bool:
        return self.dtype == np.uint8 and self.ndim >= 3 and self.shape[-1] == 3

    def _images(self) -> np.ndarray:
        """A plain array (N, H, W, 3)."""
        if not self._holds_images():
            raise UsageError(
                f"images must be uint8 (..., H, W, 3), got {self.dtype} {self.shape}"
            )
        return np.asarray(self).reshape(-1, *self.shape[-3:])

    def _picture(self, images: np.ndarray) -> np.ndarray:
        """uint8 (H', W', 3): the one image, or the grid of several, (N, H, W, 3)."""
        if len(images) == 1:
            return images[0]
        columns = self.shape[-4] if self.ndim > 4 else None
        return caption_grid(images, columns=columns)
