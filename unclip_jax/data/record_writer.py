"""Writing a folder of records (see records.py), shard by shard.

An unfinished folder holds unfinished/ (plan and what each process has written) and no
manifest; writing goes on with the shards that are missing.
"""

import collections
import itertools
import json
import pathlib
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

import msgpack
import numpy as np

from unclip_jax import files
from unclip_jax.data import record_files, records
from unclip_jax.data.sources import PER_CAPTION, BadRecord, LeftOut
from unclip_jax.errors import UsageError
from unclip_jax.gaussian import GaussianSums

CHUNK = 32  # records that are packed by one call


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
        tokenizer,  # tokenizer.Tokenizer that made "tokens"
        source_fingerprint: str,
        clip_fingerprint: str | None = None,  # needed with embeddings
        embedding_convention: str = "raw",  # one of CONVENTIONS
        extra: Mapping[str, object] | None = None,  # JSON-able, kept in the manifest
        compact: bool = False,  # embeddings in float16, tokens without padding
        process: int = 0,  # number of the one that writes, of several
    ):
        """Opens a new folder, or one begun with the same options.

        Raises:
          FileExistsError: the folder holds records made otherwise, or other files.
          UsageError: options that do not fit together.
        """
        self.folder, self._process = pathlib.Path(folder), process
        self.plan: dict[str, Any] = _make_plan(
            num_shards, image_size, arrays, tokenizer, source_fingerprint
        )
        if compact:
            self.plan["version"] = records.COMPACT
        self.plan["clip_fingerprint"] = clip_fingerprint
        self.plan["embedding_convention"] = embedding_convention
        self.plan["extra"] = dict(extra or {})
        if self.plan["embed_dim"] is not None and not clip_fingerprint:
            raise UsageError("records of embeddings need the clip_fingerprint")
        self.plan = json.loads(json.dumps(self.plan))  # as it will be read back
        record_files.claim_folder(self.folder, self.plan, records.MANIFEST)
        if not self.is_finished():
            tokenizer.save(self.folder / records.TOKENIZER)

    @property
    def num_shards(self) -> int:
        """The number of files that the plan divides the examples into."""
        return self.plan["num_shards"]

    def is_finished(self) -> bool:
        """Whether the manifest is written."""
        return (self.folder / records.MANIFEST).is_file()

    def finished_shards(self) -> set[int]:
        """Numbers of the shards that need not be written again."""
        if self.is_finished():
            return set(range(self.num_shards))
        done, _ = record_files.read_done(self.folder)
        sizes = record_files.file_sizes(self.folder)
        return {
            i
            for i, shard in done.items()
            if sizes.get(self._shard(i)) == shard["entry"]["bytes"]
        }

    def wait(self, for_manifest: bool, pause: float = 1.0) -> None:
        """Returns when other processes have done their part.

        Args:
          for_manifest: wait until one has finished the folder, not only until all
            shards are written.
          pause: seconds between looks.
        """
        while not self.is_finished():
            if not for_manifest and len(self.finished_shards()) == self.num_shards:
                return
            time.sleep(pause)

    def write_shard(
        self,
        i: int,
        examples: Iterable[Mapping],
        skipped: Iterable[BadRecord] = (),
        pool: Executor | None = None,
    ) -> int:
        """Writes shard i from its examples, in order, and says how many there were.

        Args:
          i: in [0, num_shards).
          examples: each {"key": str, "caption": str, "image": uint8 (S, S, 3) or PNG
            or JPEG bytes, and every array}; with "captions", m of them, arrays of
            PER_CAPTION are (m, ...).
          skipped: the BadRecords left out; read after the examples have been, so a
            list that grows meanwhile will do. LeftOuts among them are only counted.
          pool: its threads pack records while others are written; None packs here.

        Raises UsageError for an example that does not fit; nothing is left behind.
        """
        if not 0 <= i < self.num_shards:
            raise UsageError(f"shard {i}: there are {self.num_shards}")
        sums = GaussianSums(self.plan["embed_dim"])
        count = 0

        def pack(several):
            return [self._pack(example) for example in several]

        def packed():
            nonlocal count
            rest = iter(examples)
            chunks = iter(lambda: list(itertools.islice(rest, CHUNK)), [])
            for several, packs in _map_ahead(pool, pack, chunks):
                count += len(several)
                if self.plan["embed_dim"] is not None:
                    for example in several:
                        sums.add(self._stored(np.asarray(example["clip_image"])))
                yield from packs

        final = self.folder / self._shard(i)
        entry = {"file": final.name, **record_files.write_shard(final, packed())}
        entry["count"] = count
        unread, left_out = [], collections.Counter()
        for bad in skipped:
            if isinstance(bad, LeftOut):
                left_out[bad.reason] += 1
            else:
                unread.append({"key": bad.key, "reason": bad.reason})
        entry["left_out"] = dict(left_out)
        record_files.mark_done(self.folder, self._process, i, entry, unread, sums)
        return count

    def finish(self, constants: Mapping[str, np.ndarray] | None = None) -> dict:
        """Writes statistics.npz and manifest.json; returns the manifest.

        `constants` are arrays about all of the records, kept with the statistics.

        Raises UsageError when shards are missing or hold nothing at all.
        """
        if self.is_finished():
            record_files.remove_unfinished(self.folder)  # if stopped just before
            return records.read_manifest(self.folder)
        missing = sorted(set(range(self.num_shards)) - self.finished_shards())
        if missing:
            raise UsageError(
                f"{self.folder}: {len(missing)} of {self.num_shards} shards are not "
                f"written yet, e.g. shard {missing[0]}"
            )
        shards, skipped, left_out = [], [], collections.Counter()
        sums = GaussianSums(self.plan["embed_dim"])
        done, paths = record_files.read_done(self.folder)
        for i in range(self.num_shards):
            entry = done[i]["entry"]
            left_out.update(entry.pop("left_out", {}))
            shards.append(entry)
            skipped += done[i]["skipped"]
        record_files.merge_sums(sums, paths)
        total = sum(shard["count"] for shard in shards)
        if total == 0:
            raise UsageError(f"{self.folder}: no example could be read at all")
        if self.plan["embed_dim"] is not None:
            kept: dict[str, Any] = {**sums.statistics(), **(constants or {})}
            path = self.folder / records.STATISTICS
            files.atomic_write(path, lambda file: np.savez(file, **kept))
        manifest = {
            **self.plan,
            "num_records": total,
            "shards": [shard for shard in shards if shard["count"]],
            "skipped": skipped,
            "left_out": dict(sorted(left_out.items())),
        }
        manifest["fingerprint"] = files.sha256_json(manifest)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        files.atomic_write(self.folder / records.MANIFEST, text)
        record_files.remove_unfinished(self.folder)
        return manifest

    def _shard(self, i):
        return f"shard-{i:05d}-of-{self.num_shards:05d}.array_record"

    def _pack(self, example):
        key, size = example["key"], self.plan["image_size"]
        record = {"key": key, "caption": example["caption"]}
        count = len(example.get("captions", "1"))
        if count > 1:
            record["captions"] = list(example["captions"])
        if size is not None:
            image = example["image"]
            if isinstance(image, records.EncodedImage) and image.size == size:
                image = bytes(image)
            elif isinstance(image, bytes):
                records.decode_image(image, size, key)
            else:
                wanted = (size, size, 3)
                image = records.encode_image(
                    _fitting(image, "uint8", wanted, "image", key)
                )
            record["image"] = image
        for name, entry in self.plan["arrays"].items():
            shape = tuple(entry["shape"])
            if count > 1 and name in PER_CAPTION:
                shape = (count, *shape)
            array = _fitting(example[name], entry["dtype"], shape, name, key)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise UsageError(f"example {key!r}: {name} is not finite")
            if self._is_compact and name == "tokens":
                record[name] = records.pack_tokens(array)
                continue
            array = self._stored(array) if name in records.HALVED else array
            little = array.dtype.newbyteorder("<")
            record[name] = np.ascontiguousarray(array, little).tobytes()
        return msgpack.packb(record)

    @property
    def _is_compact(self) -> bool:
        return self.plan["version"] == records.COMPACT

    def _stored(self, embedding):
        """As it is kept: rounded, in compact records."""
        return embedding.astype(np.float16) if self._is_compact else embedding


def _make_plan(
    num_shards, image_size, arrays, tokenizer, source_fingerprint
) -> dict[str, Any]:
    """The manifest's fields that are known before the first record."""
    if num_shards < 1:
        raise UsageError(f"num_shards must be at least 1, got {num_shards}")
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
        raise UsageError(
            f"clip_image and clip_text must be vectors of one width, got {widths}"
        )
    expected = {"dtype": "int32", "shape": [tokenizer.context_length]}
    if shapes.get("tokens", expected) != expected:
        raise UsageError(f"tokens are {shapes['tokens']}, the tokenizer's {expected}")
    return {
        "format": records.FORMAT,
        "version": records.VERSION,
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


def _map_ahead(pool, function, items, ahead: int = 8):
    """(item, function(item)) of each, in order; `ahead` more are begun in the pool."""
    if pool is None:
        for item in items:
            yield item, function(item)
        return
    waiting: collections.deque = collections.deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > ahead:
            item, future = waiting.popleft()
            yield item, future.result()
    for item, future in waiting:
        yield item, future.result()


def _fitting(value, dtype, shape, name, key):
    array = np.asarray(value)
    if array.dtype != dtype or array.shape != shape:
        raise UsageError(
            f"example {key!r}: {name} is {array.dtype} {array.shape}, "
            f"expected {dtype} {shape}"
        )
    return array
