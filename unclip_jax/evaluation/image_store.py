"""Generated pictures kept by index, so that a killed evaluation goes on."""

import os
import pathlib
import re
import warnings
import zipfile

import jax
import numpy as np

_NAME = re.compile(r"images_(\d{8})_(\d{8})\.npz")


class ImageStore:
    """Pictures 0..count-1 of one generation setting, in npz chunks in one folder.

    A chunk appears whole or not at all (temporary file, then rename).
    """

    def __init__(self, folder, count):
        self.folder = pathlib.Path(folder)
        self.count = count
        self._images = {}  # index -> uint8 (H, W, 3)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("images_*.npz")):
            if match := _NAME.fullmatch(path.name):
                self._load(path, int(match[1]), int(match[2]))

    def missing(self):
        """Indices still to be generated, in order: list of int."""
        return [i for i in range(self.count) if i not in self._images]

    def put(self, start, images):
        """Keep images uint8 (B, H, W, 3) as pictures start .. start + B - 1."""
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"pictures to keep must be uint8 (B, H, W, 3), got {images.dtype} "
                f"{images.shape}"
            )
        stop = start + len(images)
        self._images.update(zip(range(start, stop), images, strict=True))
        if jax.process_index():  # every process has all pictures; one writes
            return
        path = self.folder / f"images_{start:08d}_{stop:08d}.npz"
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with open(partial, "wb") as file:
            np.savez_compressed(file, images=images)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def read(self):
        """All pictures: uint8 (count, H, W, 3).

        Raises:
          ValueError: some are still missing.
        """
        if missing := self.missing():
            raise ValueError(
                f"{len(missing)} of {self.count} pictures are missing in "
                f"{self.folder} (the first is {missing[0]})"
            )
        return np.stack([self._images[i] for i in range(self.count)])

    def _load(self, path, start, stop):
        try:
            with np.load(path) as file:
                images = file["images"]
            if len(images) != stop - start:
                raise ValueError(f"{len(images)} pictures instead of {stop - start}")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(f"{path} is broken ({error}): made again", stacklevel=3)
            return
        for i, image in zip(range(start, stop), images, strict=True):
            if i < self.count:
                self._images[i] = image
