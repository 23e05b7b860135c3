"""Images to score, wherever they are: read in slices, never all at once.

Everything here acts like an array of images: `len(images)`, `images[a:b]` is uint8
(b - a, H, W, 3), and `images.fingerprint` says which images they are.
"""

import concurrent.futures
import io
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.features.gaussian import read_npz
from unclip_jax.files import list_files
from unclip_jax.images import SUFFIXES, center_crop, find_images, open_rgb

READ_BYTES = 2**28  # of images that are in memory at a time


def as_is(image, size):
    """The image itself, whatever its size."""
    return image


def shorter_side(image, size):
    """Shorter side scaled to `size` (bicubic), then the centre: Karlo's COCO crop."""
    width, height = image.size
    scale = size / min(width, height)
    scaled = (max(size, round(width * scale)), max(size, round(height * scale)))
    return center_crop(image.resize(scaled, Image.Resampling.BICUBIC), size)


def square_lanczos(image, size):
    """The centre square, then scaled to `size` (Lanczos): GigaGAN's COCO crop."""
    square = center_crop(image, min(image.size))
    return square.resize((size, size), Image.Resampling.LANCZOS)


# config.crop: what is done to a real image before anything else sees it.
CROPS = {"": as_is, "shorter_side": shorter_side, "square_lanczos": square_lanczos}


class Images:
    """Base: `_image(i) -> RGB PIL image` is all that a kind of set must say.

    Attributes:
      fingerprint: hex sha256 of what the images are read from, and the crop.
      threads: whether several images may be read at the same time.
      notes: what a reader of the results should know about them.
    """

    threads = True
    notes: tuple[str, ...] = ()

    def __init__(self, count, fingerprint, crop="", size=0):
        if crop not in CROPS:
            raise UsageError(f"crop {crop!r}: expected one of {', '.join(CROPS)}")
        if crop and size < 1:
            raise UsageError(f"crop {crop!r} needs the size of the images")
        self._count, self._crop, self._size = count, crop, size
        self.about = {"crop": crop, "size": size if crop else 0}
        self.fingerprint = files.sha256_json([fingerprint, self.about])

    def __len__(self):
        return self._count

    def __getitem__(self, rows):
        """uint8 (B, H, W, 3) of a slice.

        Raises:
          UsageError: an image cannot be read, or differs from the others in size.
        """
        numbers = range(len(self))[rows]
        if not numbers:
            return np.zeros((0, 0, 0, 3), np.uint8)
        first = self._read(numbers[0])
        images = np.empty((len(numbers), *first.shape), np.uint8)

        def read(row):
            image = self._read(numbers[row])
            if image.shape != first.shape:
                raise UsageError(
                    f"the images differ in size: {self.name(numbers[0])} has "
                    f"{_size(first)} pixels, {self.name(numbers[row])} "
                    f"{_size(image)}. Scale them to one size first, or let config.crop "
                    f"do it: name={'|'.join(filter(None, CROPS))}, size=PIXELS, and "
                    "for --images generated=True"
                )
            images[row] = image

        workers = os.cpu_count() if self.threads else 1
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            list(pool.map(read, range(len(numbers))))
        return images

    def pieces(self, start: int, stop: int, most: int = 4096) -> Iterator[np.ndarray]:
        """The images from `start` to `stop`, READ_BYTES at a time and `most` images."""
        size = READ_BYTES // max(self[start : start + 1].nbytes, 1)
        size = min(max(size, 1), most)
        size = 1 << (size.bit_length() - 1)  # whole batches of the extractors
        for i in range(start, stop, size):
            yield self[i : min(i + size, stop)]

    def name(self, i):
        """What to call image i in a message."""
        return f"image {i}"

    def _image(self, i: int) -> Image.Image:
        raise NotImplementedError

    def _read(self, i):
        image = CROPS[self._crop](self._image(i), self._size)
        return np.asarray(image)


class FolderImages(Images):
    """All images in a folder (not below it), in the order of their names.

    Numbers in names count by their value.
    """

    def __init__(self, folder, crop="", size=0):
        """Raises FileNotFoundError: no such folder, or no image in it."""
        folder = pathlib.Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"folder of images {str(folder)!r} is not there")
        self.paths = find_images([folder])
        names = list_files(folder, SUFFIXES)
        below = sum("/" in name and not name.endswith("/grid.png") for name in names)
        if below:
            note = f"{below} images in folders below {folder} are not counted"
            self.notes = (note,)
        super().__init__(len(self.paths), self._listing(), crop, size)

    def name(self, i):
        """The file."""
        return str(self.paths[i])

    def reorder(self, numbers):
        """Puts image numbers[i] in place i."""
        self.paths = [self.paths[i] for i in numbers]
        super().__init__(len(self.paths), self._listing(), self._crop, self._size)

    def _listing(self):
        stats = [(p.name, p.stat()) for p in self.paths]
        listing = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
        return files.sha256_json(listing)

    def _image(self, i):
        return open_rgb(self.paths[i])


class ArrayImages(Images):
    """Images in memory, uint8 (N, H, W, 3)."""

    def __init__(self, images, crop="", size=0, where="the images"):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UsageError(
                f"{where} must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}"
            )
        self._images = images
        super().__init__(len(images), files.sha256_array(images), crop, size)

    def __getitem__(self, rows):
        if not self._crop:
            return self._images[rows]
        return super().__getitem__(rows)

    def _image(self, i):
        return Image.fromarray(self._images[i])


class SourceImages(Images):
    """Examples of a data source, by their numbers there."""

    def __init__(self, source, indices, crop="", size=0):
        self._source, self.indices = source, np.asarray(indices)
        self.threads = hasattr(source, "load")  # sources of files, which may
        which = [source.fingerprint, files.sha256_array(self.indices)]
        super().__init__(len(self.indices), files.sha256_json(which), crop, size)

    def first(self, count):
        """The first `count` of them."""
        if count == len(self):
            return self
        return SourceImages(self._source, self.indices[:count], self._crop, self._size)

    def _image(self, i):
        number = int(self.indices[i])
        if self._crop and hasattr(self._source, "load"):  # before the source crops
            raw = self._source.load(number)
            return open_rgb(io.BytesIO(raw.image), raw.key)
        return Image.fromarray(np.asarray(self._source[number]["image"]))


def _size(image):
    return f"{image.shape[1]}x{image.shape[0]}"


def open_images(path, crop="", size=0):
    """Images in a folder, or in an npz's `arr_0` (OpenAI's) or `images`.

    Raises:
      FileNotFoundError: nothing there.
      UsageError: an npz without images.
    """
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        return FolderImages(path, crop, size)
    arrays = read_npz(path, ("arr_0", "images"))
    for name in ("arr_0", "images"):
        if name in arrays:
            return ArrayImages(arrays[name], crop, size, f"{name} of {str(path)!r}")
    raise UsageError(f"{str(path)!r} has neither `arr_0` nor `images` in it")
