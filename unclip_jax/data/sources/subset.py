"""A part of a source of image files: its training or its validation examples.

    config.data = dict(source="folder", path="data/mine", subset="train")

A hash of an example's first caption decides, so that no caption of the one is in the
other, and neither changes when files are added.
"""

import contextlib
import hashlib
from typing import Any

import numpy as np

from unclip_jax.data.sources import BadRecord
from unclip_jax.data.sources.image_source import ImageSource, Raw
from unclip_jax.errors import UsageError
from unclip_jax.files import sha256_json

SUBSETS = ("train", "validation")


class Subset(ImageSource):
    """Some examples of another source, numbered anew."""

    def __init__(self, source: ImageSource, subset: str, held_out: float):
        """Reads all captions, but no image.

        Args:
          source: of the examples.
          subset: "train" or "validation".
          held_out: the share of captions that are kept from training.

        Raises UsageError for a name or a share that cannot be.
        """
        if subset not in SUBSETS:
            raise UsageError(
                f"config.data.subset {subset!r}: expected one of {', '.join(SUBSETS)}"
            )
        if not 0 < held_out < 1:
            raise UsageError(
                f"config.data.held_out {held_out}: expected a share, more than 0 and "
                "less than 1"
            )
        self._source = source
        chosen = [
            i
            for i in range(len(source))
            if _is_held_out(source, i, held_out) == (subset == "validation")
        ]
        self._numbers = np.array(chosen, np.int64)
        self.image_size, self.crop = source.image_size, source.crop
        self.which_captions = source.which_captions
        self.fingerprint = sha256_json([source.fingerprint, subset, held_out])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the source knows, such as what it failed to read."""
        if name.startswith("_"):  # not there before __init__, as in copies
            raise AttributeError(name)
        return getattr(self._source, name)

    def load(self, i: int) -> Raw:
        """Returns example i; BadRecord when it cannot be read."""
        return self._source.load(int(self._numbers[i]))

    def load_bytes(self, i: int) -> Any:
        """As `load`; see LoadingSource."""
        return self._source.load_bytes(int(self._numbers[i]))

    def decode(self, raw: Any, position: float | None) -> dict:
        """Returns the example of a `load_bytes`."""
        return self._source.decode(raw, position)

    def load_captions(self, i: int):
        """Returns the captions that `load` does, without reading the image."""
        return self._source.load_captions(int(self._numbers[i]))


def _is_held_out(source: ImageSource, i: int, share: float) -> bool:
    """Whether training does not see an example; it sees those without a caption."""
    with contextlib.suppress(BadRecord):
        caption = source.find_captions(i)[0].casefold()
        digest = hashlib.sha256(caption.encode()).digest()
        return int.from_bytes(digest[:8]) < share * 2**64
    return False
