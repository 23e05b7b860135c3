"""Parquet files with images inside: img2dataset's, Hugging Face's and the like.

    config.data = dict(source="parquet", path="data/emoji64", files="train*.parquet")

One row is an example. The image is a column of bytes ("jpg", "png", "image" ...) or
Hugging Face's struct {bytes, path}; captions are strings or lists of them, or a
field of a struct ("sentences/raw"). Rows that img2dataset marked as failed are not
examples.

A row group is what can be read at once, so those used last are kept in memory, up to
`cache_mb`. Reading in order (embedding) is fast whatever their size; a larger data set
read in random order (training) decodes a group for nearly each example, of which a
warning is given.
"""

import bisect
import collections
import hashlib
import itertools
import logging
import threading
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc
from pyarrow import parquet

from unclip_jax.data.sources import BadRecord
from unclip_jax.data.sources.image_source import (
    ImageSource,
    Raw,
    check_storage,
    unreadable,
)
from unclip_jax.data.sources.listing import find_files, names_and_sizes
from unclip_jax.errors import UsageError
from unclip_jax.files import why_not_regular

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes")
CAPTIONS = ("captions", "caption", "text", "txt", "TEXT", "sentences")
KEYS = ("key", "__key__", "id", "image_id", "url")
STATUS = "status"  # img2dataset's: "success", or why there is no image

logger = logging.getLogger(__name__)


class Parquet(ImageSource):
    """A source of parquet rows (see the module).

    Attributes:
      failed: {status: rows} that are no examples, by img2dataset's word.
    """

    def __init__(
        self,
        path: str,  # a folder or one file
        files: str = "**/*.parquet",  # those of the folder
        image: str = "",  # columns; "" is the first one of a usual name
        caption: str = "",
        key: str = "",  # "" may also be the file's name and the row's number
        cache_mb: int = 2048,  # of row groups kept in memory
        **common,  # see ImageSource
    ):
        """Reads every file's footer.

        Raises:
          FileNotFoundError: no files.
          UsageError: a damaged file, or one that lacks a column.
        """
        super().__init__(**common)
        self._files = find_files(path, files, "a .parquet file")
        first = _open(self._files[0])
        self._columns = {
            "image": _choose(first, self._files[0], "image", image, IMAGES),
            "caption": _choose(first, self._files[0], "caption", caption, CAPTIONS),
        }
        if key or set(KEYS) & set(first.schema_arrow.names):
            self._columns["key"] = _choose(first, self._files[0], "key", key, KEYS)
        self._groups = []  # (file, group's number, its rows or None for all, count)
        self.failed: collections.Counter = collections.Counter()
        digest = hashlib.sha256()
        size = 0
        for file in self._files:
            opened = _open(file)
            for column in self._columns.values():
                _choose(opened, file, "", column, ())
            _check_types(opened, file, self._columns)
            for number in range(opened.metadata.num_row_groups):
                group = opened.metadata.row_group(number)
                rows = self._good_rows(opened, number)
                count = group.num_rows if rows is None else len(rows)
                if count:
                    self._groups.append((file, number, rows, count))
                size += group.total_byte_size
                digest.update(f"{group.num_rows},{group.total_byte_size};".encode())
        self._ends = list(itertools.accumulate(group[-1] for group in self._groups))
        limit = cache_mb * 2**20
        self._cache = _Cache(self._read, limit)
        if size > limit:
            logger.warning(
                "%s: %d MB do not fit into cache_mb=%d: in random order (training) "
                "reading will be slow; write records with `python -m unclip_jax.embed`",
                path,
                size // 2**20,
                cache_mb,
            )
        self.set_fingerprint(
            files=names_and_sizes(self._files, path),
            columns=self._columns,
            groups=digest.hexdigest(),
        )

    def __len__(self):
        return self._ends[-1] if self._ends else 0

    def load(self, i: int) -> Raw:
        """Key, image bytes and captions of example i."""
        table, row, where, folder = self._find(i)
        image = table["image"][row].as_py()
        key = where
        if "key" in table and (named := table["key"][row].as_py()) is not None:
            key = str(named)
        if isinstance(image, dict):  # Hugging Face's
            data = image.get("bytes")
            image = data or _read_file(folder, image.get("path"), key)
        return Raw(key, image or b"", _captions(table["caption"][row], key))

    def load_captions(self, i: int):
        """The captions of example i, without reading its image."""
        table, row, where, _ = self._find(i)
        return _captions(table["caption"][row], where)

    def _find(self, i):
        """(row group, row in it, "file:row", folder of the file) of example i."""
        number = bisect.bisect_right(self._ends, i)
        file, group, rows, count = self._groups[number]
        place = i - (self._ends[number] - count)
        row = place if rows is None else int(rows[place])
        where = f"{file.stem}-{group}-{row}"
        try:
            return self._cache.get(number), row, where, file.parent
        except (pa.ArrowException, OSError) as error:
            check_storage(error, file.parent)
            reason = f"row group {group} of {file.name} is damaged ({error})"
            raise BadRecord(where, reason) from error

    def _read(self, number):
        file, group, *_ = self._groups[number]
        names = {name.partition("/")[0] for name in self._columns.values()}
        table = _open(file).read_row_group(group, columns=[*names])
        return {what: _field(table, name) for what, name in self._columns.items()}

    def _good_rows(self, opened, number):
        """Numbers of a group's rows with an image; None where nobody says."""
        if STATUS not in opened.schema_arrow.names:
            return None
        status = opened.read_row_group(number, columns=[STATUS])[STATUS].to_pylist()
        self.failed.update(s for s in status if s != "success")
        return np.flatnonzero([s == "success" for s in status]).astype(np.int32)


class _Cache:
    """What was read last, up to a number of bytes; for any number of threads."""

    def __init__(self, read, limit):
        self._read, self._limit = read, limit
        self._kept = collections.OrderedDict()
        self._size = 0
        self._lock = threading.Lock()  # held while reading: others want the same

    def get(self, number):
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            columns = self._read(number)
            self._kept[number] = columns
            self._size += _size(columns)
            while self._size > self._limit and len(self._kept) > 1:
                self._size -= _size(self._kept.popitem(last=False)[1])
            return columns


def _size(columns) -> int:
    return sum(column.nbytes for column in columns.values())


def _open(file):
    try:
        return parquet.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(
            f"{file} is damaged or not a parquet file ({error}); copy it again or "
            "leave it out by config.data.files"
        ) from error


def _choose(opened, file, what, name, usual) -> str:
    """The column `name`, or "name/field", or for "" the first of the usual ones."""
    names = opened.schema_arrow.names
    if names.count(name) > 1:
        raise UsageError(f"{file} has several columns {name!r}: rename all but one")
    if _type_of(opened, name) is not None:
        return name
    if not name:
        for name in usual:
            if names.count(name) == 1:
                return name
        raise UsageError(
            f"{file} has no column of {what}s by a usual name ({', '.join(usual)}): "
            f"set config.data.{what} to one of {', '.join(names)}"
        )
    raise UsageError(f"{file} has no column {name!r}, only {', '.join(names)}")


def _type_of(opened, name) -> Any:
    """The type of a column, or of the field of a struct in one; None without it."""
    schema = opened.schema_arrow
    first, _, rest = name.partition("/")
    if name in schema.names:
        return schema.field(name).type
    if not rest or first not in schema.names:
        return None
    outer = schema.field(first).type
    if not pa.types.is_struct(outer) or outer.get_field_index(rest) < 0:
        return None
    return outer.field(rest).type


def _field(table, name):
    """The column of a table, or the field of a struct in one."""
    if name in table.column_names:
        return table[name]
    first, _, rest = name.partition("/")
    return pc.call_function("struct_field", [table[first]], pc.StructFieldOptions(rest))


def _check_types(opened, file, columns) -> None:
    """Refuses columns that hold neither images nor captions."""
    image, caption = (_type_of(opened, columns[w]) for w in ("image", "caption"))
    fields = {field.name for field in image} if pa.types.is_struct(image) else set()
    if not (_is_bytes(image) or fields & {"bytes", "path"}):
        why = "; are they paths? Only bytes can be read" if _is_text(image) else ""
        raise UsageError(
            f"{file}: column {columns['image']!r} holds {image}, not the bytes of "
            f"images{why}: set config.data.image to another column"
        )
    inner = caption.value_type if _is_list(caption) else caption
    if pa.types.is_struct(inner):
        fields = ", ".join(f"{columns['caption']}/{f.name}" for f in inner)
        raise UsageError(
            f"{file}: column {columns['caption']!r} holds structs, not captions: set "
            f"config.data.caption to one of {fields}"
        )
    if not (_is_text(inner) or _is_bytes(inner) or pa.types.is_null(inner)):
        raise UsageError(
            f"{file}: column {columns['caption']!r} holds {caption}, not captions: set "
            "config.data.caption to a column of texts or of lists of texts"
        )


def _is_text(kind) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_list(kind) -> bool:
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    )


def _read_file(folder, name, key) -> bytes:
    file = folder / (name or "")
    if problem := why_not_regular(file):
        raise BadRecord(key, f"its image is not there ({file} is {problem})")
    try:
        return file.read_bytes()
    except OSError as error:
        raise unreadable(key, str(file), error, folder) from error


def _captions(value, key) -> list:
    try:
        captions = value.as_py()
    except UnicodeDecodeError as error:
        raise BadRecord(key, f"its caption is damaged ({error})") from error
    return captions if isinstance(captions, list) else [captions]
