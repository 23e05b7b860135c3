"""Records: examples with their CLIP embeddings, in ArrayRecord shards.

A finished folder holds

    manifest.json      what is in it: counts, shapes, fingerprints, what was skipped
    shard-00000-of-00008.array_record ...
    statistics.npz     count, mean, std, cov (float64), mean_norm of clip_image; with
                       text_states, what CLIP makes of the empty caption
    tokenizer/         the tokenizer that made `tokens`

Each record is a msgpack map {key, caption, image: PNG or JPEG bytes, and per array
of the manifest its raw little-endian bytes}: an example's image, tokens and embeddings
stand in one record under one key and cannot come apart. With several captions it holds
`captions` besides, and tokens, clip_text and text_states of each, one after the other.
Compact records (version 2) have the embeddings in float16, and of tokens one bytes
object per caption, without padding.
Embeddings are CLIP's raw outputs (convention "raw"), or came normalised ("unit"); then
there are no images. One record per group, so random access reads one record.

record_writer.py writes them.
"""

import io
import itertools
import json
import math
import os
import pathlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from unclip_jax import files
from unclip_jax.data import open_files, record_files, verified
from unclip_jax.data.sources import PER_CAPTION, BadRecord
from unclip_jax.errors import UsageError

FORMAT, VERSION, COMPACT = "unclip_jax-records", 1, 2
HALVED = ("clip_image", "clip_text")  # in float16, in compact records
# Of the image embeddings: CLIP's outputs as they are, or divided by their norm.
CONVENTIONS = ("raw", "unit")
MANIFEST, STATISTICS, TOKENIZER = "manifest.json", "statistics.npz", "tokenizer"
# What reading and unpacking damaged bytes raise.
_DAMAGE = (RuntimeError, IndexError, ValueError, msgpack.UnpackException)
REMEDY = "make it with `python -m unclip_jax.embed`"


class RecordReader:
    """A finished folder of records: a source, and a batch's arrays by number.

    Attributes:
      manifest: dict.
      arrays: {name: (dtype, shape)} of the stored arrays.
      image_size: int; None without images.
      fingerprint: str.
      tokenizer_folder: str.
      statistics: {name: float64 array} of clip_image, and the constants that the
        writer was given; None without embeddings.
    """

    def __init__(self, path: str | os.PathLike):
        """Checks the manifest, and every shard's size and hash against it.

        Raises:
          FileNotFoundError: no such folder, not records, unfinished, a missing shard.
          UsageError: a truncated shard, one of other records (see verified.py), a
            changed manifest, another version.
        """
        self.path = pathlib.Path(path)
        self.manifest = read_manifest(self.path)
        sizes = record_files.file_sizes(self.path)
        for shard in self.manifest["shards"]:
            _check_shard(self.path, shard, sizes.get(shard["file"]))
        verified.check_shards(
            self.path, self.manifest["shards"], self.manifest["fingerprint"]
        )
        self.arrays = {
            name: (entry["dtype"], tuple(entry["shape"]))
            for name, entry in self.manifest["arrays"].items()
        }
        self._is_compact = self.manifest["version"] == COMPACT
        self._layout = {  # of the bytes: (dtype, shape, their number)
            name: (little, shape, little.itemsize * math.prod(shape))
            for name, (dtype, shape) in self.arrays.items()
            for half in [self._is_compact and name in HALVED]
            for little in [np.dtype("float16" if half else dtype).newbyteorder("<")]
        }
        self.image_size = self.manifest["image_size"]
        self.fingerprint = self.manifest["fingerprint"]
        self.tokenizer_folder = str(self.path / TOKENIZER)
        self.statistics = None
        if self.manifest["embed_dim"] is not None:
            self.statistics = _read_statistics(self.path / STATISTICS)
        counts = [shard["count"] for shard in self.manifest["shards"]]
        self._ends = list(itertools.accumulate(counts))
        self._readers = open_files.Readers(len(counts), self._open)

    def __len__(self):
        return self.manifest["num_records"]

    def __getitem__(self, i: int) -> dict:
        """{"key", "caption", "image" uint8 (S, S, 3), and every stored array}.

        Of several captions, which "captions" holds, the arrays are those of the first.

        Raises IndexError, or BadRecord when the example cannot be read.
        """
        record = self._record(i)
        texts = {k: record[k] for k in ("key", "caption", "captions") if k in record}
        names = [*self.arrays] if self.image_size is None else ["image", *self.arrays]
        return {**texts, **self._decode(i, record, names, 0)}

    def fetch(self, indices: Sequence[int] | np.ndarray) -> list[Any]:
        """Reads the bytes of some records; those of one shard together."""
        indices = np.asarray(indices)
        records: list[Any] = [None] * len(indices)
        numbers = np.searchsorted(self._ends, indices, "right")
        for number in sorted(set(numbers.tolist())):
            rows = np.flatnonzero(numbers == number)
            shard = self.manifest["shards"][number]
            places = (indices[rows] - (self._ends[number] - shard["count"])).tolist()
            packed = _read_each(self._readers[number], places)
            for row, place, data in zip(rows.tolist(), places, packed, strict=True):
                records[row] = data, f"{shard['file']}:{place}"
        return records

    def read_batch(
        self,
        indices: Sequence[int] | np.ndarray,
        names: Iterable[str],
        caption_indices: Sequence[int] | np.ndarray | None = None,
        positions: np.ndarray | None = None,
        fetched: Sequence[Any] | None = None,
    ) -> list[dict[str, np.ndarray] | BadRecord]:
        """Reads the named arrays of several examples, see `BatchReader`."""
        del positions  # records hold squares
        examples: list[dict[str, np.ndarray] | BadRecord] = []
        for row, packed in enumerate(fetched or self.fetch(indices)):
            record = _unpack(*packed)
            if not isinstance(record, BadRecord):
                which = None if caption_indices is None else int(caption_indices[row])
                try:
                    record = self._decode(indices[row], record, names, which)
                except BadRecord as bad:
                    record = bad
            examples.append(record)
        return examples

    def captions(self, n: int | None = None) -> list[str]:
        """All captions of the first n examples (None: of all)."""
        count = len(self) if n is None else min(n, len(self))
        found = []
        for i in range(count):
            record = self._record(i)
            found += record.get("captions", [record["caption"]])
        return found

    def verify(self) -> None:
        """Reads every shard and compares its hash; UsageError names one that is off."""
        for shard in self.manifest["shards"]:
            if files.sha256_file(self.path / shard["file"]) != shard["sha256"]:
                raise UsageError(
                    f"shard {shard['file']} in {self.path} is not what was written; "
                    f"remove the folder and {REMEDY}"
                )
        verified.remember(self.path, self.manifest["shards"], self.fingerprint)

    def _record(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        record = _unpack(*self.fetch([i])[0])
        if isinstance(record, BadRecord):
            raise record
        return record

    def _open(self, number):
        return _Shard(self.path, self.manifest["shards"][number])

    def _decode(self, i, record, names, caption_index):
        key, out = record.get("key", f"example {i}"), {}
        for name in names:
            if name == "image":
                out[name] = decode_image(record.get("image"), self.image_size, key)
                continue
            dtype, shape, size = self._layout[name]
            data, count, which = record.get(name, b""), 1, 0
            if name in PER_CAPTION:
                count = len(record.get("captions", "1"))
                which = (caption_index or 0) % count
                if caption_index is None:
                    shape = (count, *shape)
            if self._is_compact and name == "tokens":
                data = _unpack_tokens(data, self._layout[name][1][-1], key)
            if len(data) != count * size:
                raise BadRecord(key, f"{name} has {len(data)} bytes, not {shape}")
            array = np.ndarray(shape, dtype, data, which * size)
            out[name] = array.astype(self.arrays[name][0], copy=False)
        return out


class EncodedImage(bytes):
    """The bytes of a square image that `encode_image` made: they need no check.

    Attributes:
      size: its side.
    """

    size: int


def encode_image(image: np.ndarray, kind: str = "png") -> EncodedImage:
    """uint8 (S, S, 3) to bytes, the same for the same pixels.

    Args:
      image: the pixels.
      kind: "png", or "jpeg" (quality 95) whose chroma has every pixel (4:4:4): Pillow's
        default would leave a decoder a quarter of the chroma to learn.
    """
    out = io.BytesIO()
    if kind == "jpeg":
        Image.fromarray(image).save(out, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(image).save(out, "PNG", compress_level=4)
    encoded = EncodedImage(out.getvalue())
    encoded.size = len(image) if image.shape[0] == image.shape[1] else 0
    return encoded


def pack_tokens(tokens: np.ndarray) -> list[bytes]:
    """int32 (L,) or (m, L) to one bytes object per caption, without padding.

    Of the last token, which padding repeats, one is kept.
    """
    rows = []
    for row in np.atleast_2d(tokens):
        others = np.flatnonzero(row != row[-1])
        end = others[-1] + 2 if len(others) else 1
        kind = "<u2" if row.max() < 2**16 and row.min() >= 0 else "<i4"
        rows.append(kind[1:].encode() + row[:end].astype(kind).tobytes())
    return rows


def _unpack_tokens(rows, length: int, key: str) -> bytes:
    """The bytes of int32 (m, length) of what `pack_tokens` made."""
    out = []
    try:
        for row in rows:
            tokens = np.frombuffer(row, "<" + row[:2].decode(), offset=2)
            padded = np.full(length, tokens[-1], "<i4")
            padded[: len(tokens)] = tokens
            out.append(padded.tobytes())
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise BadRecord(key, f"its tokens are damaged ({error})") from error
    return b"".join(out)


def decode_image(data, image_size: int, key: str = "") -> np.ndarray:
    """PNG or JPEG bytes to uint8 (image_size, image_size, 3); BadRecord if it fails."""
    if not isinstance(data, bytes):
        raise BadRecord(key, "it has no image")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            pixels = np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        raise BadRecord(key, f"its image is damaged ({error})") from error
    if pixels.shape != (image_size, image_size, 3):
        raise BadRecord(
            key, f"its image is {pixels.shape[:2]}, not {image_size} x {image_size}"
        )
    return pixels


def _read_each(shard, places) -> list[bytes | Exception]:
    """The bytes of each record; one that is damaged does not spoil the others."""
    try:
        return shard.read(places)
    except _DAMAGE as error:
        if len(places) == 1:
            open_files.check_readable(shard.path)  # the disk may be away
            return [error]
        return [_read_each(shard, [place])[0] for place in places]


def _unpack(data: bytes | Exception, where: str) -> dict | BadRecord:
    try:
        if isinstance(data, Exception):
            raise data
        record = msgpack.unpackb(data)
    except _DAMAGE as error:
        return BadRecord(where, f"damaged bytes ({error})")
    if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
        return BadRecord(where, "not a record of an example")
    return record


def read_manifest(folder) -> dict:
    """The checked manifest of a finished folder; errors as RecordReader's."""
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {str(folder)!r} does not exist; {REMEDY}")
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(record_files.why_unfinished(folder))
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        got = (manifest["format"], manifest["version"])
        claimed = manifest["fingerprint"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} is not a manifest of records ({error})") from error
    if got not in ((FORMAT, VERSION), (FORMAT, COMPACT)):
        raise UsageError(f"{file} is {got}, this code reads {(FORMAT, VERSION)}")
    rest = {k: v for k, v in manifest.items() if k != "fingerprint"}
    if files.sha256_json(rest) != claimed:
        raise UsageError(f"{file} was changed after it was written; {REMEDY} again")
    return manifest


def _read_statistics(file) -> dict[str, np.ndarray]:
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except files.NUMPY_DAMAGE as error:
        raise UsageError(
            f"{file} is missing or damaged ({error}); copy it again, or remove the "
            f"folder and {REMEDY}"
        ) from error


class _Shard:
    """An open shard, whose reads wait for each other: they share one position."""

    def __init__(self, folder, shard):
        self.path = path = folder / shard["file"]
        self._reader, self._lock = record_files.open_shard(path), threading.Lock()
        count = self._reader.num_records()
        if count != shard["count"]:
            open_files.check_readable(path)  # it opens as empty when it cannot be
            raise UsageError(
                f"shard {shard['file']} in {folder} holds {count} records, "
                f"{shard['count']} were written; copy it again, or {REMEDY} in another "
                "folder"
            )

    def read(self, places):
        with self._lock:
            return self._reader.read(places)


def _check_shard(folder, shard, size: int | None) -> None:
    if size is None:
        raise FileNotFoundError(
            f"shard {shard['file']} is missing in {folder}; copy it again, or remove "
            f"the folder and {REMEDY}"
        )
    if size != shard["bytes"]:
        raise UsageError(
            f"shard {shard['file']} in {folder} is truncated or was changed: {size} "
            f"bytes, {shard['bytes']} were written; copy it again, or remove the "
            f"folder and {REMEDY}"
        )
