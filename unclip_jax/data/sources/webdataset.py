"""Tar files of images and captions: WebDataset's, as img2dataset writes them.

    config.data = dict(source="webdataset", path="data/laion", files="*.tar")

Members a.jpg and a.txt (or a.json with a field "caption") are example "a"; where
`caption` names a field, the .json counts, whatever is in the .txt. Nothing is unpacked:
an index of where the members lie is made once, with one pass over the tars' headers,
and kept beside them or in `cache`; from then on any example is a short read or two.
Changed, added or removed tars make a new index.
"""

import contextlib
import json
import os
import pathlib

import numpy as np

from unclip_jax.data import open_files
from unclip_jax.data.sources import BadRecord
from unclip_jax.data.sources.image_source import (
    ImageSource,
    Raw,
    printable,
    unreadable,
)
from unclip_jax.data.sources.listing import find_files, names_and_sizes
from unclip_jax.data.sources.tar_headers import TEXTS
from unclip_jax.data.sources.tar_index import open_index
from unclip_jax.errors import UsageError

NEAR = 1 << 16  # bytes between two members that are read rather than skipped
MAX_BYTES = 1 << 31  # of a sample


class WebDataset(ImageSource):
    """A source of tar members (see the module).

    Attributes:
      failed: {what is missing: samples} that are no examples.
    """

    def __init__(
        self,
        path: str,  # a folder or one file
        files: str = "**/*.tar",  # those of the folder
        caption: str = "",  # field of .json members; "" is the .txt, or "caption"
        cache: str = "",  # folder of the index; "" is beside the tars, or ~/.cache
        **common,  # see ImageSource
    ):
        """Reads the index, or makes it.

        Raises:
          FileNotFoundError: no tars.
          UsageError: damaged or compressed tars, all of them named; no .json that has
            the field of captions.
          PermissionError: the index cannot be written.
        """
        super().__init__(**common)
        self._tars = find_files(path, files, "a .tar file")
        root = pathlib.Path(path)
        folders = [cache or (root if root.is_dir() else root.parent)]
        if not cache:  # the data may lie where nobody can write
            user = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
            folders.append(pathlib.Path(user, "unclip_jax"))
        texts = TEXTS[::-1] if caption else TEXTS
        self._index = open_index(self._tars, folders, texts)
        self.failed = self._index.failed
        self._caption = caption or "caption"
        self._root = root
        self._files = open_files.Readers(len(self._tars), self._open)
        self._check_field()
        self.set_fingerprint(
            files=names_and_sizes(self._tars, path),
            count=len(self),
            samples=self._index.digest,
            caption=self._caption,
        )

    def __len__(self):
        return len(self._index)

    def load(self, i: int) -> Raw:
        """Returns key, image bytes and captions of example i."""
        row = self._index[i]
        key = _text(row["key"])
        image_at, text_at = int(row["image_at"]), int(row["text_at"])
        image_end, text_end = image_at + row["image_size"], text_at + row["text_size"]
        gap = max(image_at, text_at) - min(image_end, text_end)
        if gap > NEAR:
            image = self._read(row["tar"], image_at, row["image_size"], key)
            return Raw(key, image, self._captions_of(row, key, self._text(row, key)))
        first = min(image_at, text_at)
        both = self._read(row["tar"], first, max(image_end, text_end) - first, key)
        text = both[text_at - first : text_end - first]
        image = both[image_at - first : image_end - first]
        return Raw(key, image, self._captions_of(row, key, text))

    def load_captions(self, i: int):
        """Returns the captions of example i, without reading its image."""
        row = self._index[i]
        key = _text(row["key"])
        return self._captions_of(row, key, self._text(row, key))

    def _captions_of(self, row, key, text):
        if not row["is_json"]:
            try:
                return [text.decode("utf-8-sig")]
            except UnicodeDecodeError as error:
                raise BadRecord(key, f"its caption is damaged ({error})") from error
        caption = self._fields(key, text).get(self._caption)
        return caption if isinstance(caption, list) else [caption]

    def _fields(self, key, text) -> dict:
        """What a .json member holds."""
        try:
            fields = json.loads(text or "{}")
        except (ValueError, RecursionError) as error:
            raise BadRecord(key, f"its caption is damaged ({error})") from error
        if not isinstance(fields, dict):
            raise BadRecord(key, "its caption is damaged (its .json is no {...})")
        return fields

    def _check_field(self) -> None:
        """Refuses a field of captions that the first readable .json members lack."""
        numbers = np.flatnonzero(self._index.read(0, 100_000)["is_json"])[:100]
        if not len(numbers) and len(self) and self._caption != "caption":
            raise UsageError(
                f"config.data.caption {self._caption!r} is a field of .json members, "
                f"but the tars in {self._root} have none; leave it out"
            )
        known: set[str] = set()
        for i in numbers.tolist():
            with contextlib.suppress(BadRecord):
                row = self._index[i]
                known |= set(self._fields("", self._text(row, "")))
            if self._caption in known:  # a look at one, most often
                return
        if known:
            raise UsageError(
                f"no .json in {self._root} has a field {self._caption!r}; they have "
                f"{', '.join(sorted(known)[:20])}: set config.data.caption to one"
            )

    def _text(self, row, key) -> bytes:
        return self._read(row["tar"], row["text_at"], row["text_size"], key)

    def _read(self, tar, at, size, key) -> bytes:
        if tar >= len(self._tars) or at < 0 or not 0 <= size <= MAX_BYTES:
            raise BadRecord(key, "its row in the index of the tars is damaged")
        file = self._tars[tar]
        try:
            data = os.pread(self._files[int(tar)].fileno(), int(size), int(at))
        except OSError as error:
            raise unreadable(key, printable(file.name), error, self._root) from error
        if len(data) != size:
            raise BadRecord(key, f"{printable(file.name)} ends before it")
        return data

    def _open(self, tar):
        return open(self._tars[tar], "rb", buffering=0)  # closed when it is let go


def _text(key: bytes) -> str:
    return key.decode("utf-8", "replace")
