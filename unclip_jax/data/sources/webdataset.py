"""Tar files of pictures and captions: WebDataset's, as img2dataset writes them.

    config.data = dict(source="webdataset", path="data/laion", files="*.tar")

Members a.jpg and a.txt (or a.json with a field "caption") are example "a". Nothing is
unpacked: an index of where the members lie is made once, with one pass over the tars'
headers, and kept beside them or in `cache`; from then on any example is two short
reads. Changed, added or removed tars make a new index.
"""

import hashlib
import json
import os
import pathlib
import threading

from unclip_jax.data.sources import BadRecord
from unclip_jax.data.sources.image_source import ImageSource, Raw
from unclip_jax.data.sources.listing import find_files, names_and_sizes
from unclip_jax.data.sources.tar_index import open_index

MANY_FILES = 512  # kept open; with more tars each read opens its own


class WebDataset(ImageSource):
    """A source of tar members (see the module).

    Attributes:
      failed: {what is missing: samples} that are no examples.
    """

    def __init__(
        self,
        path: str,  # a folder or one file
        files: str = "**/*.tar",  # those of the folder
        caption: str = "caption",  # field of .json members
        cache: str = "",  # folder of the index; "" is beside the tars
        **common,  # see ImageSource
    ):
        """Reads the index, or makes it.

        Raises:
          FileNotFoundError: no tars.
          UsageError: damaged or compressed tars, all of them named.
          PermissionError: the index cannot be written.
        """
        super().__init__(**common)
        self._tars = find_files(path, files, "a .tar file")
        root = pathlib.Path(path)
        folder = cache or (root if root.is_dir() else root.parent)
        self._index, self.failed = open_index(self._tars, folder)
        self._caption = caption
        self._open: dict[int, int] = {}  # tar number -> file descriptor
        self._lock = threading.Lock()
        digest = hashlib.sha256(self._index[:: _step(self)].tobytes())
        self.set_fingerprint(
            files=names_and_sizes(self._tars, path),
            count=len(self),
            samples=digest.hexdigest(),
            caption=caption,
        )

    def __len__(self):
        return len(self._index)

    def load(self, i: int) -> Raw:
        """Key, image bytes and captions of example i."""
        row = self._index[i]
        key = row["key"].decode()
        image = self._read(row["tar"], row["image_at"], row["image_size"], key)
        return Raw(key, image, self._captions_of(row, key))

    def find_captions(self, i: int):
        """The captions of example i, without reading its image."""
        row = self._index[i]
        return self._captions_of(row, row["key"].decode())

    def _captions_of(self, row, key):
        text = self._read(row["tar"], row["text_at"], row["text_size"], key)
        try:
            if not row["is_json"]:
                return [text.decode("utf-8")]
            found = json.loads(text).get(self._caption)
        except (ValueError, AttributeError) as error:
            raise BadRecord(key, f"its caption is damaged ({error})") from error
        if isinstance(found, list):
            return [str(item) for item in found]
        return [] if found is None else [str(found)]

    def _read(self, tar, at, size, key) -> bytes:
        file = self._tars[tar]
        try:
            data = self._pread(int(tar), int(size), int(at))
        except OSError as error:
            raise BadRecord(key, f"{file.name} cannot be read ({error})") from error
        if len(data) != size:
            raise BadRecord(key, f"{file.name} ends before it")
        return data

    def _pread(self, tar, size, at):
        if len(self._tars) > MANY_FILES:
            with open(self._tars[tar], "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, at)
        with self._lock:
            if tar not in self._open:
                self._open[tar] = os.open(self._tars[tar], os.O_RDONLY)
        return os.pread(self._open[tar], size, at)

    def __del__(self):
        for handle in getattr(self, "_open", {}).values():
            os.close(handle)


def _step(source) -> int:
    """A thousand samples stand for all in the fingerprint."""
    return max(1, len(source) // 1000)
