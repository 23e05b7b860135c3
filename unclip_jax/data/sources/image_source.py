"""What every source of image files shares: from encoded bytes to a square, captions.

A source of this kind says where the bytes and captions of example i are (`load`); this
file decodes them. Any file that Pillow opens will do, see images.py. The largest
centered square is cut out and scaled to `image_size`; with crop="random", training
takes one anywhere instead.
"""

import contextlib
import dataclasses
import errno
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from unclip_jax.data.sources import BadRecord, LeftOut
from unclip_jax.errors import UsageError
from unclip_jax.files import sha256_json
from unclip_jax.images import UnreadableImage, opened, to_rgb, to_square

# The options that each of these sources has besides its own, see ImageSource.
COMMON = ("image_size", "min_size", "max_aspect", "captions", "crop")
COMMON += ("subset", "held_out")
CAPTIONS = ("all", "first")
CROPS = ("center", "random")
# What a disk, a mount or the process has, not one file of many.
_NOT_THE_EXAMPLE = {
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}


@dataclasses.dataclass(frozen=True)
class Raw:
    """An example as it lies on disk."""

    key: str
    image: bytes
    captions: Sequence[Any]  # `clean_caption` makes texts of them


class ImageSource:
    """Examples from encoded images; subclasses have __len__, load and load_captions.

    Attributes:
      image_size: side of the images it gives.
      crop: which square the loader asks for in training, see `cropped`.
      fingerprint: str.
    """

    def __init__(
        self,
        image_size: int = 64,  # pixels, square
        min_size: int = 0,  # of the shorter side as stored; 0: small ones are enlarged
        max_aspect: float = 0.0,  # longer / shorter side; 0: any
        captions: str = "all",  # one of them per epoch, in turn; or "first"
        crop: str = "center",  # or "random": in training, any of the largest squares
        subset: str = "",  # "train" or "validation", see subset.py; "" is all
        held_out: float = 0.05,  # share of the captions that are of the validation
    ):
        """Raises UsageError for options that cannot be."""
        if not 1 <= image_size <= 4096:
            raise UsageError(
                f"config.data.image_size must be 1 to 4096 pixels, got {image_size}"
            )
        if min_size < 0 or (max_aspect and max_aspect < 1):
            raise UsageError(
                "expected min_size >= 0 and max_aspect 0 (any) or >= 1, got "
                f"{min_size} and {max_aspect}"
            )
        if captions not in CAPTIONS:
            raise UsageError(f"captions {captions!r}: expected one of {CAPTIONS}")
        if crop not in CROPS:
            raise UsageError(f"crop {crop!r}: expected one of {CROPS}")
        self.crop = crop
        self.image_size, self.min_size = int(image_size), int(min_size)
        self.max_aspect, self.which_captions = float(max_aspect), captions
        self.subset, self.held_out = subset, float(held_out)
        self.fingerprint = ""

    def __len__(self) -> int:
        raise NotImplementedError

    def load(self, i: int) -> Raw:
        """Returns example i; BadRecord when it cannot be read."""
        raise NotImplementedError

    def load_captions(self, i: int) -> Sequence[Any]:
        """Returns the captions that `load` does, without reading the image."""
        raise NotImplementedError

    def __getitem__(self, i: int) -> dict:
        """Returns {"key", "image" uint8 (S, S, 3), "caption", "captions" (tuple)}.

        "caption" is the first of "captions". Raises IndexError outside [0, len),
        BadRecord for what cannot be read, LeftOut for what min_size or max_aspect
        leave out.
        """
        return self.cropped(i, None)

    def cropped(self, i: int, position: float | None) -> dict:
        """Returns source[i] with the square at `position`, see `to_square`."""
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        return self.decode(self.load(int(i)), position)

    def load_bytes(self, i: int) -> Raw:
        """As `load`; see LoadingSource."""
        return self.load(i)

    def decode(self, raw: Raw, position: float | None) -> dict:
        """Returns the example that `load` gave, see `cropped`."""
        captions = self._usable(raw.captions, raw.key)
        filters = self.min_size, self.max_aspect
        image = decode(raw.image, self.image_size, raw.key, *filters, position)
        return {
            "key": raw.key,
            "image": image,
            "caption": captions[0],
            "captions": captions,
        }

    def find_captions(self, i: int) -> tuple[str, ...]:
        """Returns the captions of source[i], without decoding its image."""
        return self._usable(self.load_captions(i), f"example {i}")

    def captions(self, n: int | None = None) -> list[str]:
        """Returns all captions of the first n examples (None: of all)."""
        texts: list[str] = []
        for i in range(len(self) if n is None else min(n, len(self))):
            with contextlib.suppress(BadRecord):
                texts += self.find_captions(i)
        return texts

    def set_fingerprint(self, **what) -> None:
        """Names the examples by JSON-able facts and the common options."""
        options = (self.image_size, self.min_size, self.max_aspect, self.which_captions)
        self.fingerprint = sha256_json([type(self).__name__, options, what])

    def _usable(self, captions, key) -> tuple[str, ...]:
        """At least one caption without needless white space."""
        texts = tuple(text for c in captions if (text := clean_caption(c, key)))
        if not texts:
            raise LeftOut(key, "no caption")
        return texts if self.which_captions == "all" else texts[:1]


def clean_caption(caption: Any, key: str) -> str:
    """Returns a caption as one line of text that can be encoded; "" for none.

    Half an emoji, as JSON may hold one ("\\ud83d"), becomes U+FFFD. None and NaN are no
    captions.

    Raises BadRecord for what is no text: dicts, lists.
    """
    if caption is None or caption != caption:
        return ""
    if isinstance(caption, bytes):
        caption = caption.decode("utf-8", "replace")
    if isinstance(caption, dict | list | tuple):
        kind = type(caption).__name__
        raise BadRecord(key, f"its caption is a {kind}, not a text")
    text = str(caption).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(text.split())


def printable(name: str) -> str:
    """Returns a file's name as text that can be encoded, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "replace")


def check_storage(error: Exception, root: pathlib.Path) -> None:
    """Raises an error that is not one example's.

    The whole storage is away, or no file at all can be opened.
    """
    if isinstance(error, OSError):
        if error.errno in _NOT_THE_EXAMPLE or not root.exists():
            raise error


def unreadable(key: str, name: str, error: OSError, root: pathlib.Path) -> BadRecord:
    """Returns that a file of an example cannot be read; see `check_storage`."""
    check_storage(error, root)
    return BadRecord(key, f"{name} cannot be read ({error.strerror or error})")


def decode(
    data: bytes,
    size: int,
    key: str,
    min_size: int = 0,
    max_aspect: float = 0.0,
    position: float | None = None,
) -> np.ndarray:
    """The square of an encoded image, see `to_square`: uint8 (size, size, 3).

    Raises:
      BadRecord: not an image, truncated or otherwise damaged.
      LeftOut: shorter than min_size or longer than max_aspect times its shorter side.
    """
    if not data:
        raise BadRecord(key, "it has no image")
    try:
        with opened(io.BytesIO(data), key) as image:
            width, height = image.size
            short, long = sorted((width, height))
            if short < min_size:
                raise LeftOut(key, f"a side below min_size {min_size}")
            if max_aspect and long > max_aspect * short:
                raise LeftOut(key, f"an aspect ratio above max_aspect {max_aspect:g}")
            if short >= 4 * size:  # JPEG only: decodes at a fraction of the size
                scale = 2 * size / short
                image.draft("RGB", (int(scale * width), int(scale * height)))
            return to_square(to_rgb(image), size, position)
    except UnreadableImage as error:
        raise BadRecord(key, f"its image is damaged ({error.reason})") from error
