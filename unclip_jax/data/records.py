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
Embeddings are CLIP's raw outputs (convention "raw"), or came normalised ("unit"); then
there are no images. One record per group, so random access reads one record.

An unfinished folder holds unfinished/ (plan and one file of sums per finished shard)
and no manifest; writing goes on with the shards that are missing.
"""

import bisect
import collections
import io
import itertools
import json
import pathlib
import threading
from collections.abc import Iterable, Mapping

import msgpack
import numpy as np
from PIL import Image

from unclip_jax.data import record_files
from unclip_jax.data.sources import PER_CAPTION, BadRecord, LeftOut

FORMAT, VERSION = "unclip_jax-records", 1
# Of the image embeddings: CLIP's outputs as they are, or divided by their norm.
CONVENTIONS = ("raw", "unit")
MANIFEST, STATISTICS, TOKENIZER = "manifest.json", "statistics.npz", "tokenizer"
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

    def __init__(self, path: str):
        """Checks the manifest, and every shard's size against it.

        Raises:
          FileNotFoundError: no such folder, not records, unfinished, a missing shard.
          ValueError: a truncated shard, a changed manifest, another version.
        """
        self.path = pathlib.Path(path)
        self.manifest = _read_manifest(self.path)
        for shard in self.manifest["shards"]:
            _check_shard(self.path, shard)
        self.arrays = {
            name: (entry["dtype"], tuple(entry["shape"]))
            for name, entry in self.manifest["arrays"].items()
        }
        self.image_size = self.manifest["image_size"]
        self.fingerprint = self.manifest["fingerprint"]
        self.tokenizer_folder = str(self.path / TOKENIZER)
        self.statistics = None
        if self.manifest["embed_dim"] is not None:
            with np.load(self.path / STATISTICS) as file:
                self.statistics = dict(file)
        counts = [shard["count"] for shard in self.manifest["shards"]]
        self._ends = list(itertools.accumulate(counts))
        self._readers = {}
        self._lock = threading.Lock()  # a reader's position is shared by its callers

    def __len__(self):
        return self.manifest["num_records"]

    def __getitem__(self, i: int) -> dict:
        """{"key", "caption", "image" uint8 (S, S, 3), and every stored array}.

        Of several captions, which "captions" holds, the arrays are those of the first.

        Raises IndexError, or BadRecord when the example cannot be read.
        """
        record = self._record(i)
        found = {k: record[k] for k in ("key", "caption", "captions") if k in record}
        names = [*self.arrays] if self.image_size is None else ["image", *self.arrays]
        return {**found, **self._decode(i, record, names, 0)}

    def read(
        self, i: int, names: Iterable[str], turn: int | None = 0
    ) -> dict[str, np.ndarray]:
        """Only the named arrays of example i ("image" or a stored one).

        Of PER_CAPTION, those of caption `turn`, modulo their number; None stacks those
        of all captions: (m, ...).
        """
        return self._decode(i, self._record(i), names, turn)

    def captions(self, n: int | None = None) -> list[str]:
        """All captions of the first n examples (None: of all)."""
        count = len(self) if n is None else min(n, len(self))
        found = []
        for i in range(count):
            record = self._record(i)
            found += record.get("captions", [record["caption"]])
        return found

    def verify(self) -> None:
        """Reads every shard and compares its hash; ValueError names one that is off."""
        for shard in self.manifest["shards"]:
            if record_files.file_hash(self.path / shard["file"]) != shard["sha256"]:
                raise ValueError(
                    f"shard {shard['file']} in {self.path} is not what was written; "
                    f"remove the folder and {REMEDY}"
                )

    def _record(self, i) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        number = bisect.bisect_right(self._ends, i)
        shard = self.manifest["shards"][number]
        place = int(i) - (self._ends[number] - shard["count"])
        where = f"{shard['file']}:{place}"
        with self._lock:
            if number not in self._readers:
                self._readers[number] = _open(self.path, shard)
            try:
                (data,) = self._readers[number].read([place])
            except (RuntimeError, IndexError) as error:
                raise BadRecord(where, f"damaged bytes ({error})") from error
        try:
            record = msgpack.unpackb(data)
        except (ValueError, msgpack.UnpackException) as error:
            raise BadRecord(where, f"damaged bytes ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
            raise BadRecord(where, "not a record of an example")
        return record

    def _decode(self, i, record, names, turn):
        key, out = record.get("key", f"example {i}"), {}
        for name in names:
            if name == "image":
                out[name] = decode_image(record.get("image"), self.image_size, key)
                continue
            dtype, shape = self.arrays[name]
            data = record.get(name, b"")
            array = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
            several = name in PER_CAPTION
            count = len(record.get("captions", "1")) if several else 1
            if array.size != count * np.prod(shape):
                raise BadRecord(key, f"{name} has {array.size} values, not {shape}")
            array = array.astype(dtype).reshape((count, *shape))
            out[name] = (
                array if several and turn is None else array[(turn or 0) % count]
            )
        return out


class RecordWriter:
    """Writes shards in any order, each whole or absent, and finishes the folder.

        writer = RecordWriter(folder, num_shards=8, image_size=32, arrays={...}, ...)
        for i in range(8):
            if i not in writer.finished_shards():
                writer.write_shard(i, examples_of(i), skipped)
        writer.finish()

    Several processes may write different shards; one of them finishes.
    """

    def __init__(
        self,
        folder,
        *,
        num_shards: int,
        image_size: int | None,  # None: no images
        arrays: Mapping[str, tuple],  # name -> (dtype, shape), as in a stage's spec
        tokenizer,  # data.tokenizer.Tokenizer that made "tokens"
        source_fingerprint: str,
        clip_fingerprint: str | None = None,  # needed with embeddings
        embedding_convention: str = "raw",  # one of CONVENTIONS
        extra: Mapping[str, object] | None = None,  # JSON-able, kept in the manifest
    ):
        """Opens a new folder, or one begun with the same options.

        Raises:
          FileExistsError: the folder holds records made otherwise, or other files.
          ValueError: options that do not fit together.
        """
        self.folder = pathlib.Path(folder)
        self.plan = _make_plan(
            num_shards, image_size, arrays, tokenizer, source_fingerprint
        )
        self.plan["clip_fingerprint"] = clip_fingerprint
        self.plan["embedding_convention"] = embedding_convention
        self.plan["extra"] = dict(extra or {})
        if self.plan["embed_dim"] is not None and not clip_fingerprint:
            raise ValueError("records of embeddings need the clip_fingerprint")
        self.plan = json.loads(json.dumps(self.plan))  # as it will be read back
        record_files.claim_folder(self.folder, self.plan, MANIFEST)
        if not self.is_finished():
            tokenizer.save(self.folder / TOKENIZER)

    @property
    def num_shards(self) -> int:
        return self.plan["num_shards"]

    def is_finished(self) -> bool:
        """Whether the manifest is written."""
        return (self.folder / MANIFEST).is_file()

    def finished_shards(self) -> set[int]:
        """Numbers of the shards that need not be written again."""
        if self.is_finished():
            return set(range(self.num_shards))
        return {
            i
            for i in range(self.num_shards)
            if record_files.is_shard_done(self.folder, i, self._shard(i))
        }

    def write_shard(
        self, i: int, examples: Iterable[Mapping], skipped: Iterable[BadRecord] = ()
    ) -> int:
        """Writes shard i from its examples, in order, and says how many there were.

        Args:
          i: in [0, num_shards).
          examples: each {"key": str, "caption": str, "image": uint8 (S, S, 3) or PNG
            or JPEG bytes, and every array}; with "captions", m of them, arrays of
            PER_CAPTION are (m, ...).
          skipped: the BadRecords left out; read after the examples have been, so a
            list that grows meanwhile will do. LeftOuts among them are only counted.

        Raises ValueError for an example that does not fit; nothing is left behind.
        """
        if not 0 <= i < self.num_shards:
            raise ValueError(f"shard {i}: there are {self.num_shards}")
        sums = record_files.Sums(self.plan["embed_dim"])
        count = 0

        def records():
            nonlocal count
            for example in examples:
                count += 1
                if self.plan["embed_dim"] is not None:
                    sums.add(np.asarray(example["clip_image"]))
                yield self._pack(example)

        final = self.folder / self._shard(i)
        entry = {"file": final.name, **record_files.write_shard(final, records())}
        entry["count"] = count
        unread, left_out = [], collections.Counter()
        for bad in skipped:
            if isinstance(bad, LeftOut):
                left_out[bad.reason] += 1
            else:
                unread.append({"key": bad.key, "reason": bad.reason})
        entry["left_out"] = dict(left_out)
        record_files.mark_done(self.folder, i, entry, unread, sums)
        return count

    def finish(self, constants: Mapping[str, np.ndarray] | None = None) -> dict:
        """Writes statistics.npz and manifest.json; returns the manifest.

        `constants` are arrays about all of the records, kept with the statistics.

        Raises ValueError when shards are missing or hold nothing at all.
        """
        if self.is_finished():
            record_files.remove_unfinished(self.folder)  # if stopped just before
            return _read_manifest(self.folder)
        missing = sorted(set(range(self.num_shards)) - self.finished_shards())
        if missing:
            raise ValueError(
                f"{self.folder}: {len(missing)} of {self.num_shards} shards are not "
                f"written yet, e.g. shard {missing[0]}"
            )
        shards, skipped, left_out = [], [], collections.Counter()
        sums = record_files.Sums(self.plan["embed_dim"])
        for i in range(self.num_shards):
            entry, unread, part = record_files.read_done(self.folder, i)
            left_out.update(entry.pop("left_out", {}))
            shards.append(entry)
            skipped += unread
            sums.merge(part)
        total = sum(shard["count"] for shard in shards)
        if total == 0:
            raise ValueError(f"{self.folder}: no example could be read at all")
        if self.plan["embed_dim"] is not None:
            kept = {**sums.statistics(), **(constants or {})}
            record_files.write_npz(self.folder / STATISTICS, kept)
        manifest = {
            **self.plan,
            "num_records": total,
            "shards": [shard for shard in shards if shard["count"]],
            "skipped": skipped,
            "left_out": dict(sorted(left_out.items())),
        }
        manifest["fingerprint"] = record_files.json_hash(manifest)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        record_files.write_bytes(self.folder / MANIFEST, text.encode())
        record_files.remove_unfinished(self.folder)
        return manifest

    def _shard(self, i):
        return f"shard-{i:05d}-of-{self.num_shards:05d}.array_record"

    def _pack(self, example) -> bytes:
        key, size = example["key"], self.plan["image_size"]
        record = {"key": key, "caption": example["caption"]}
        count = len(example.get("captions", "1"))
        if count > 1:
            record["captions"] = list(example["captions"])
        if size is not None:
            image = example["image"]
            if isinstance(image, bytes):
                decode_image(image, size, key)
            else:
                wanted = (size, size, 3)
                image = encode_image(_fitting(image, "uint8", wanted, "image", key))
            record["image"] = image
        for name, entry in self.plan["arrays"].items():
            shape = tuple(entry["shape"])
            if count > 1 and name in PER_CAPTION:
                shape = (count, *shape)
            array = _fitting(example[name], entry["dtype"], shape, name, key)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"example {key!r}: {name} is not finite")
            little = array.dtype.newbyteorder("<")
            record[name] = np.ascontiguousarray(array, little).tobytes()
        return msgpack.packb(record)


def encode_image(image: np.ndarray) -> bytes:
    """uint8 (H, W, 3) to PNG bytes, the same for the same pixels."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=4)
    return out.getvalue()


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


def _make_plan(num_shards, image_size, arrays, tokenizer, source_fingerprint):
    """The manifest's fields that are known before the first record."""
    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1, got {num_shards}")
    shapes = {
        name: {"dtype": np.dtype(dtype).name, "shape": list(map(int, shape))}
        for name, (dtype, shape) in arrays.items()
    }
    widths = {
        name: tuple(shapes[name]["shape"])
        for name in ("clip_image", "clip_text")
        if name in shapes
    }
    if len(set(widths.values())) > 1 or any(len(w) != 1 for w in widths.values()):
        raise ValueError(
            f"clip_image and clip_text must be vectors of one width, got {widths}"
        )
    expected = {"dtype": "int32", "shape": [tokenizer.context_length]}
    if shapes.get("tokens", expected) != expected:
        raise ValueError(f"tokens are {shapes['tokens']}, the tokenizer's {expected}")
    return {
        "format": FORMAT,
        "version": VERSION,
        "num_shards": num_shards,
        "image_size": image_size,
        "arrays": shapes,
        "embed_dim": widths["clip_image"][0] if "clip_image" in widths else None,
        "context_length": tokenizer.context_length,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "source_fingerprint": source_fingerprint,
    }


def _fitting(value, dtype, shape, name, key):
    array = np.asarray(value)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"example {key!r}: {name} is {array.dtype} {array.shape}, "
            f"expected {dtype} {shape}"
        )
    return array


def _read_manifest(folder) -> dict:
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {str(folder)!r} does not exist; {REMEDY}")
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(record_files.why_unfinished(folder))
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        got = (manifest["format"], manifest["version"])
        claimed = manifest["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a manifest of records ({error})") from error
    if got != (FORMAT, VERSION):
        raise ValueError(f"{file} is {got}, this code reads {(FORMAT, VERSION)}")
    rest = {k: v for k, v in manifest.items() if k != "fingerprint"}
    if record_files.json_hash(rest) != claimed:
        raise ValueError(f"{file} was changed after it was written; {REMEDY} again")
    return manifest


def _open(folder, shard):
    reader = record_files.open_shard(folder / shard["file"])
    if reader.num_records() != shard["count"]:
        raise ValueError(
            f"shard {shard['file']} in {folder} holds {reader.num_records()} records, "
            f"{shard['count']} were written; remove the folder and {REMEDY}"
        )
    return reader


def _check_shard(folder, shard) -> None:
    file = folder / shard["file"]
    if not file.is_file():
        raise FileNotFoundError(
            f"shard {shard['file']} is missing in {folder}; copy it again, or remove "
            f"the folder and {REMEDY}"
        )
    size = file.stat().st_size
    if size != shard["bytes"]:
        raise ValueError(
            f"shard {shard['file']} in {folder} is truncated or was changed: {size} "
            f"bytes, {shard['bytes']} were written; copy it again, or remove the "
            f"folder and {REMEDY}"
        )
