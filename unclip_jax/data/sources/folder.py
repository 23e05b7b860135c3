"""A folder of image files with captions.

    config.data = dict(source="folder", path="data/mine")

The captions are in a text file beside each image (cat.jpg, cat.txt: one caption a
line), or in one table in the folder: metadata.jsonl, metadata.csv or another named by
`table`. A table names the image (column "file_name", "file", "image" or "path") and
the caption ("caption", "captions" or "text"); an image on several rows, or a list in
jsonl, has several captions. Images without any are not examples.
"""

import csv
import hashlib
import io
import json
import os
import pathlib
import unicodedata
from collections.abc import Mapping

from unclip_jax.data.sources import BadRecord
from unclip_jax.data.sources.image_source import (
    ImageSource,
    Raw,
    printable,
    unreadable,
)
from unclip_jax.errors import UsageError
from unclip_jax.files import list_files, read_utf8, split_lines
from unclip_jax.images import SUFFIXES

TABLES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv")
FILES = ("file_name", "filename", "file", "image", "path")
CAPTIONS = ("captions", "caption", "text")


class Folder(ImageSource):
    """A source of image files (see the module), sorted by name.

    Attributes:
      failed: {"no caption": images that are no examples}.
    """

    def __init__(
        self,
        path: str,  # the folder; those in it are searched too
        table: str = "",  # file of captions; "" is metadata.* or text files
        **common,  # see ImageSource
    ):
        """Lists the folder and reads the captions.

        Raises:
          FileNotFoundError: no folder, no image in it, or no table.
          UsageError: a table that cannot be read or names files that are not there.
        """
        super().__init__(**common)
        self._root = pathlib.Path(path)
        if not self._root.is_dir():
            raise FileNotFoundError(f"config.data.path {str(path)!r} is not a folder")
        names = list_files(self._root, (*SUFFIXES, ".txt"))
        images = [name for name in names if name.lower().endswith(SUFFIXES)]
        if not images:
            raise FileNotFoundError(
                f"no image in {str(path)!r} (expected {', '.join(SUFFIXES)})"
            )
        tables = [name for name in TABLES if (self._root / name).is_file()]
        if table or tables:
            captions = _read_table(self._root / (table or tables[0]), images)
        else:
            texts = {name[:-4]: name for name in names if name.lower().endswith(".txt")}
            captions = {
                name: _read_lines(self._root / text)
                for name in images
                if (text := texts.get(os.path.splitext(name)[0]))
            }
        self._captions: Mapping[str, list[str] | None] = captions
        self._names = sorted(captions)
        self.failed = {}
        if without := len(images) - len(self._names):
            self.failed = {"no caption": without}
        if not self._names:
            raise FileNotFoundError(
                f"none of the {len(images)} images in {str(path)!r} has a caption: "
                "put name.txt beside name.jpg, or metadata.csv with columns file_name "
                "and caption into the folder"
            )
        digest = hashlib.sha256()
        for name in self._names:
            entry = [name, (self._root / name).stat().st_size, self._captions[name]]
            digest.update(json.dumps(entry).encode())
        self.set_fingerprint(files=digest.hexdigest())

    def __len__(self):
        return len(self._names)

    def load(self, i: int) -> Raw:
        """Returns key, image bytes and captions of example i."""
        name = self._names[i]
        key = printable(os.path.splitext(name)[0])
        try:
            data = (self._root / name).read_bytes()
        except OSError as error:
            raise unreadable(key, printable(name), error, self._root) from error
        return Raw(key, data, self.load_captions(i))

    def load_captions(self, i: int) -> list[str]:
        """Returns the captions of example i, without reading its image."""
        name = self._names[i]
        captions = self._captions[name]
        if captions is None:
            key = printable(os.path.splitext(name)[0])
            raise BadRecord(key, "the text file of its captions is not UTF-8")
        return captions


def _read_lines(file) -> list[str] | None:
    """The captions in a text file; None where they are not UTF-8."""
    try:
        return split_lines(read_utf8(file))
    except UsageError:
        return None


def _read_table(table, images) -> dict[str, list[str]]:
    """{image: captions} of a .csv or .jsonl."""
    if not table.is_file():
        raise FileNotFoundError(f"config.data.table {str(table)!r} does not exist")
    normal = {_normalized(name): name for name in images}
    captions: dict[str, list[str]] = {}
    for number, row in _rows(table):
        where = f"{table}, row {number}"
        name, caption = _field(row, FILES, where), _field(row, CAPTIONS, where)
        if not isinstance(name, str) or _normalized(name) not in normal:
            raise UsageError(
                f"{where}: there is no image {name!r} below {table.parent}"
            )
        texts = [caption] if isinstance(caption, str) else caption
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UsageError(f"{where}: {caption!r} is neither a caption nor a list")
        captions.setdefault(normal[_normalized(name)], []).extend(texts)
    return captions


def _normalized(name: str) -> str:
    """A path as tables may also write it: "./a.jpg", or accents in another form."""
    return unicodedata.normalize("NFC", os.path.normpath(name))


def _rows(table):
    """(number, dict) of each row."""
    text = read_utf8(table)
    if table.suffix.lower() == ".csv":
        yield from _csv_rows(table, text)
        return
    for number, line in enumerate(split_lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{table}, row {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UsageError(f"{table}, row {number}: expected {{...}}")
        yield number, row


def _csv_rows(table, text):
    before = csv.field_size_limit(2**31 - 1)  # captions may be long
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for number, row in enumerate(reader, 2):  # row 1 names the columns
            if None in row:
                raise UsageError(
                    f"{table}, row {number}: has more fields than the first row: put "
                    'a caption with commas into "quotes"'
                )
            yield number, row
    except csv.Error as error:
        raise UsageError(f"{table}, line {reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(before)  # it is the process's


def _field(row, names, where):
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise UsageError(
        f"{where}: none of the columns {', '.join(names)} in {', '.join(map(str, row))}"
    )
