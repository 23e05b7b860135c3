"""Generated pictures kept on disk by index: a killed evaluation goes on, and memory
holds one chunk of them however many there are."""

import pathlib
import re
import warnings
import zipfile

import jax
import numpy as np

from unclip_jax import files
from unclip_jax.evaluation.image_sets import Images

_NAME = re.compile(r"images_(\d{8})_(\d{8})\.npz")
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class ImageStore:
    """Pictures 0..count-1 of one generation setting, in npz chunks in one folder.

    A chunk appears whole or not at all (temporary file, then rename).
    """

    def __init__(self, folder, count):
        """Reads every chunk once, one at a time: a broken one is made again."""
        self.folder = pathlib.Path(folder)
        self.count = count
        self._kept = {}  # index -> (file, row in it, sha256 of the picture)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("images_*.npz")):
            if match := _NAME.fullmatch(path.name):
                self._find(path, int(match[1]), int(match[2]))

    def missing(self):
        """Indices still to be generated, in order: list of int."""
        return [i for i in range(self.count) if i not in self._kept]

    def put(self, start, images):
        """Keep images uint8 (B, H, W, 3) as pictures start .. start + B - 1."""
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"pictures to keep must be uint8 (B, H, W, 3), got {images.dtype} "
                f"{images.shape}"
            )
        stop = start + len(images)
        path = self.folder / f"images_{start:08d}_{stop:08d}.npz"
        self._note(path, start, images)
        if jax.process_index():  # every process draws all pictures; one writes
            return
        files.atomic_write(path, lambda file: np.savez_compressed(file, images=images))

    def images(self):
        """All pictures, read when they are asked for: StoredImages.

        Raises:
          ValueError: some are still missing.
        """
        if missing := self.missing():
            raise ValueError(
                f"{len(missing)} of {self.count} pictures are missing in "
                f"{self.folder} (the first is {missing[0]})"
            )
        return StoredImages([self._kept[i] for i in range(self.count)])

    def _find(self, path, start, stop):
        try:
            images = _read(path)
            if len(images) != stop - start:
                raise ValueError(f"{len(images)} pictures instead of {stop - start}")
        except _BROKEN as error:
            warnings.warn(f"{path} is broken ({error}): made again", stacklevel=3)
            return
        self._note(path, start, images)

    def _note(self, path, start, images):
        for row, image in enumerate(images[: max(self.count - start, 0)]):
            self._kept[start + row] = path, row, files.sha256_array(image)


class StoredImages(Images):
    """Pictures of an ImageStore; see image_sets.py. Keeps the last file it read."""

    threads = False

    def __init__(self, places):
        """Args: places: [(file, row in it, sha256)], one of each picture."""
        self._places = places
        self._last = None, None  # file, its pictures
        super().__init__(len(places), [digest for *_, digest in places])

    def __getitem__(self, rows):
        found = [self._picture(i) for i in range(len(self))[rows]]
        return np.stack(found) if found else np.zeros((0, 0, 0, 3), np.uint8)

    def _picture(self, i):
        path, row, _ = self._places[i]
        if path != self._last[0]:
            try:
                self._last = path, _read(path)
            except _BROKEN as error:
                raise ValueError(
                    f"{path} changed while it was evaluated ({error}); start again"
                ) from error
        return self._last[1][row]


def _read(path):
    with np.load(path) as file:
        return file["images"]
