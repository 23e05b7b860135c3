"""A folder of picture files with captions.

    config.data = dict(source="folder", path="data/mine")

The captions are in a text file beside each picture (cat.jpg, cat.txt: one caption a
line), or in one table in the folder: metadata.jsonl, metadata.csv or another named by
`table`. A table names the picture (column "file_name", "file", "image" or "path") and
the caption ("caption", "captions" or "text"); a picture on several rows, or a list in
jsonl, has several captions. Pictures without any are not examples.
"""

import csv
import hashlib
import json
import os
import pathlib

from unclip_jax.data.sources import BadRecord
from unclip_jax.data.sources.image_source import ImageSource, Raw
from unclip_jax.errors import UsageError
from unclip_jax.images import SUFFIXES

TABLES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv")
FILES = ("file_name", "filename", "file", "image", "path")
CAPTIONS = ("captions", "caption", "text")


class Folder(ImageSource):
    """A source of picture files (see the module), sorted by name.

    Attributes:
      failed: {"no caption": pictures that are no examples}.
    """

    def __init__(
        self,
        path: str,  # the folder; those in it are searched too
        table: str = "",  # file of captions; "" is metadata.* or text files
        **common,  # see ImageSource
    ):
        """Lists the folder and reads the captions.

        Raises:
          FileNotFoundError: no folder, no picture in it, or no table.
          UsageError: a table that cannot be read or names files that are not there.
        """
        super().__init__(**common)
        self._root = pathlib.Path(path)
        if not self._root.is_dir():
            raise FileNotFoundError(f"config.data.path {str(path)!r} is not a folder")
        pictures, texts = _list(self._root)
        if not pictures:
            raise FileNotFoundError(
                f"no picture in {str(path)!r} (expected {', '.join(SUFFIXES)})"
            )
        found = [name for name in TABLES if (self._root / name).is_file()]
        if table or found:
            self._captions = _read_table(self._root / (table or found[0]), pictures)
        else:
            self._captions = {
                name: (self._root / text).read_text(encoding="utf-8").splitlines()
                for name in pictures
                if (text := os.path.splitext(name)[0] + ".txt") in texts
            }
        self._names = sorted(self._captions)
        self.failed = {}
        if without := len(pictures) - len(self._names):
            self.failed = {"no caption": without}
        if not self._names:
            raise FileNotFoundError(
                f"none of the {len(pictures)} pictures in {str(path)!r} has a caption: "
                "put name.txt beside name.jpg, or metadata.csv with columns file_name "
                "and caption into the folder"
            )
        digest = hashlib.sha256()
        for name in self._names:
            entry = [name, pictures[name], self._captions[name]]
            digest.update(json.dumps(entry).encode())
        self.set_fingerprint(files=digest.hexdigest())

    def __len__(self):
        return len(self._names)

    def load(self, i: int) -> Raw:
        """Key, image bytes and captions of example i."""
        name = self._names[i]
        key = os.path.splitext(name)[0]
        try:
            data = (self._root / name).read_bytes()
        except OSError as error:
            raise BadRecord(key, f"{name} cannot be read ({error})") from error
        return Raw(key, data, self._captions[name])

    def find_captions(self, i: int):
        """The captions of example i, without reading its image."""
        return self._captions[self._names[i]]


def _list(root):
    """({picture: bytes}, set of text files): names below root, with slashes."""
    pictures, texts = {}, set()
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            file = pathlib.Path(folder, name)
            suffix = file.suffix.lower()
            below = file.relative_to(root).as_posix()
            if suffix in SUFFIXES:
                pictures[below] = file.stat().st_size
            elif suffix == ".txt":
                texts.add(below)
    return pictures, texts


def _read_table(table, pictures) -> dict[str, list[str]]:
    """{picture: captions} of a .csv or .jsonl."""
    if not table.is_file():
        raise FileNotFoundError(f"config.data.table {str(table)!r} does not exist")
    captions: dict[str, list[str]] = {}
    for number, row in _rows(table):
        where = f"{table}, row {number}"
        name, caption = _field(row, FILES, where), _field(row, CAPTIONS, where)
        if name not in pictures:
            raise UsageError(
                f"{where}: there is no picture {name!r} below {table.parent}"
            )
        texts = [caption] if isinstance(caption, str) else caption
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UsageError(f"{where}: {caption!r} is neither a caption nor a list")
        captions.setdefault(name, []).extend(texts)
    return captions


def _rows(table):
    """(number, dict) of each row."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        if table.suffix.lower() == ".csv":
            yield from enumerate(csv.DictReader(file), 2)  # row 1 names the columns
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{table}, row {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise UsageError(f"{table}, row {number}: expected {{...}}")
            yield number, row


def _field(row, names, where):
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise UsageError(
        f"{where}: none of the columns {', '.join(names)} in {', '.join(map(str, row))}"
    )
