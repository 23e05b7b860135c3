"""Hints that records keep beside their images, such as depth maps, from image files.

`a/cat.png` in the folder is the hint of the example `a/cat.jpg`: a key without its
ending. It has its image's sides, or their ratio, and is scaled and cropped like it.
"""

import os
import pathlib

import numpy as np

from unclip_jax import files
from unclip_jax.data.sources import BadRecord
from unclip_jax.errors import UsageError
from unclip_jax.images import SUFFIXES, read_image

NAME = "hint"  # of the array


class HintFiles:
    """The hints in a folder, read one by one.

    Attributes:
      fingerprint: another for files of other names or sizes.
    """

    def __init__(self, folder: str | os.PathLike):
        """Lists the folder; FileNotFoundError for one that has no images."""
        root = pathlib.Path(folder)
        names = list(files.list_files(root, SUFFIXES)) if root.is_dir() else []
        if not names:
            raise FileNotFoundError(
                f"config.hints: no image in {str(folder)!r} (expected "
                f"{', '.join(SUFFIXES)})"
            )
        self._root = root
        self._files = {os.path.splitext(name)[0]: root / name for name in names}
        sizes = {name: (root / name).stat().st_size for name in names}
        self.fingerprint = files.sha256_json(sizes)

    def arrays(self, image_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """{name: (dtype, shape)} of what is kept of an example."""
        return {NAME: ("uint8", (image_size, image_size, 3))}

    def read(self, key: str, image_size: int) -> np.ndarray:
        """uint8 (image_size, image_size, 3); BadRecord where it cannot be read."""
        file = self._files.get(os.path.splitext(key)[0])
        if file is None:
            raise BadRecord(key, f"no hint of its name in {self._root}")
        try:
            return read_image(file, image_size)
        except (UsageError, OSError) as error:
            raise BadRecord(key, f"its hint cannot be read ({error})") from None
