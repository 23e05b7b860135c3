"""Readers of batches: from a source's examples to arrays, with or without a memory."""

import collections
import logging
import os
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from unclip_jax.data.sources import (
    PER_CAPTION,
    BadRecord,
    BatchReader,
    CroppingSource,
    LeftOut,
    LoadingSource,
    Source,
    captions_of,
)
from unclip_jax.errors import UsageError
from unclip_jax.tokenizer import Tokenizer

Shapes = Mapping[str, tuple[tuple[int, ...], str]]  # {name: (shape, dtype)}

logger = logging.getLogger(__name__)


class CaptionReader:
    """Reads "image" and "tokens" of a source of images with captions."""

    def __init__(self, source: Source, tokenizer: Tokenizer):
        """Keeps both; nothing is read yet."""
        self._source, self._tokenizer = source, tokenizer
        self._cropped = source.cropped if isinstance(source, CroppingSource) else None
        self._loading = source if isinstance(source, LoadingSource) else None

    def fetch(self, indices):
        """Reads the bytes of some examples, or why they cannot be."""
        loaded = []
        for i in indices:
            try:
                loaded.append(self._loading and self._loading.load_bytes(int(i)))
            except BadRecord as bad:
                loaded.append(bad)
        return loaded

    def read_batch(
        self, indices, names, caption_indices=None, positions=None, fetched=None
    ):
        """Reads the named arrays of several examples, see `BatchReader`."""
        examples, texts = [], []
        for row, i in enumerate(indices):
            position = None if positions is None else positions[row]
            try:
                loaded = None if fetched is None else fetched[row]
                example = self._read(int(i), position, loaded)
            except BadRecord as bad:
                examples.append(bad)
                continue
            captions = captions_of(example)
            if caption_indices is not None:
                captions = [captions[caption_indices[row] % len(captions)]]
            texts += captions
            example = {"image": example.get("image"), "tokens": len(captions)}
            examples.append({name: example[name] for name in names})
        if "tokens" in names:
            tokens, first = self._tokenizer.encode(texts), 0
            for example in examples:
                if isinstance(example, BadRecord):
                    continue
                count, start = example["tokens"], first
                first += count
                every = tokens[start:first]
                example["tokens"] = every if caption_indices is None else every[0]
        return examples

    def _read(self, i, position, loaded):
        if isinstance(loaded, BadRecord):
            raise loaded
        if loaded is not None and self._loading is not None:
            return self._loading.decode(loaded, position)
        if position is not None and self._cropped is not None:
            return self._cropped(i, position)
        return self._source[i]


class ReplacingReader:
    """Reads batches of which every row is readable.

    An example that cannot be read is replaced by the next one that can, by number, and
    so is one that the source's filters leave out.

    Attributes:
      bad: {key: reason} of the examples that could not be read so far.
      left_out: {reason: how often an example was left out for it so far}.
    """

    def __init__(self, reader: BatchReader, num_examples: int):
        """Keeps the reader and the number of its examples."""
        self._reader, self._size = reader, num_examples
        self.bad: dict[str, str] = {}
        self._bad_numbers: set[int] = set()
        self.left_out: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def fetch(self, indices):
        """Reads the bytes of some examples, see `BatchReader`."""
        return self._reader.fetch(indices)

    def read(self, indices, names, caption_indices, positions=None, fetched=None):
        """Returns {name: (B, ...)}; the arguments are those of `BatchReader`."""
        examples = self.examples(indices, names, caption_indices, positions, fetched)
        return {name: np.stack([e[name] for e in examples]) for name in names}

    def examples(
        self, indices, names, caption_indices=None, positions=None, fetched=None
    ):
        """Returns {name: array} of each example; see `BatchReader`."""
        readable = []
        examples = self._reader.read_batch(
            indices, names, caption_indices, positions, fetched
        )
        for row, example in enumerate(examples):
            if isinstance(example, BadRecord):
                rows = slice(row, row + 1)
                example = self._replacement(
                    int(indices[row]),
                    example,
                    names,
                    None if caption_indices is None else caption_indices[rows],
                    None if positions is None else positions[rows],
                )
            readable.append(example)
        return readable

    def _replacement(self, i, bad, names, caption_indices, positions):
        """The first readable example after number i, which is bad."""
        self._count(i, bad)
        for number in range(i + 1, i + self._size):
            number %= self._size
            (example,) = self._reader.read_batch(
                [number], names, caption_indices, positions
            )
            if not isinstance(example, BadRecord):
                return example
            self._count(number, example)
        why = ", ".join(sorted(self.left_out) + sorted(set(self.bad.values()))[:3])
        raise UsageError(
            f"none of the {self._size} examples can be used ({why}): repair the data, "
            "or let config.data leave fewer out"
        )

    def _count(self, i: int, bad: BadRecord) -> None:
        with self._lock:
            if isinstance(bad, LeftOut):
                self.left_out[bad.reason] += 1
                count = self.left_out[bad.reason]
            elif i in self._bad_numbers:
                return
            else:
                self._bad_numbers.add(i)  # keys may be there more than once
                count = len(self._bad_numbers)
                self.bad[bad.key] = bad.reason
        if isinstance(bad, LeftOut):
            if count in (1, 1000, 1_000_000):
                logger.warning("%s left out so far for %s", f"{count:,}", bad.reason)
            return
        logger.warning("%s; the next readable one takes its place", bad)
        if count > max(16, self._size // 100):
            raise UsageError(
                f"{count} of {self._size} examples cannot be read, the last: {bad}; "
                "repair the data or make it again"
            )


class MemoryReader:
    """Reads batches from memory, where every example's arrays are after `load`."""

    def __init__(self, reader: ReplacingReader, num_examples: int, shapes: Shapes):
        """Keeps the reader; `shapes` are those of one example, with one caption."""
        self._reader, self._size, self._shapes = reader, num_examples, shapes
        self._arrays: dict[str, np.ndarray] = {}  # those of PER_CAPTION one by one
        self._first = self._counts = np.zeros(0, int)  # captions of each example

    def load(self, names: Sequence[str]) -> None:
        """Reads the named arrays of all examples, unless they are here."""
        missing = [name for name in names if name not in self._arrays]
        if not missing:
            return
        _check_memory(self._size, [self._shapes[name] for name in missing])
        captions = {name: [] for name in missing if name in PER_CAPTION}
        whole = {
            name: np.empty((self._size, *self._shapes[name][0]), self._shapes[name][1])
            for name in missing
            if name not in captions
        }
        for start in range(0, self._size, 64):
            indices = range(start, min(start + 64, self._size))
            for i, example in enumerate(self._reader.examples(indices, missing), start):
                for name, array in whole.items():
                    array[i] = example[name]
                for name, rows in captions.items():
                    rows.append(example[name])
        for name, rows in captions.items():
            self._counts = np.array([len(row) for row in rows])
            self._first = np.cumsum(self._counts) - self._counts
            whole[name] = np.concatenate(rows)
        self._arrays |= whole

    def read(self, indices, names, caption_indices, positions=None, fetched=None):
        """Returns {name: (B, ...)} of what was loaded, see `BatchReader`."""
        del positions, fetched  # one square of each image is kept, here
        out = {}
        for name in names:
            rows = indices
            if name in PER_CAPTION:
                which = caption_indices % self._counts[indices]
                rows = self._first[indices] + which
            out[name] = self._arrays[name][rows]
        return out


def _check_memory(count: int, shapes) -> None:
    """Refuses what cannot fit in three quarters of this machine's memory."""
    sizes = [np.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes]
    needed = count * float(sum(sizes))
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not every system says
        return
    if needed > 0.75 * total:
        raise UsageError(
            f"feed 'arrays' would need {needed / 2**30:.1f} GiB for {count} examples, "
            f"this machine has {total / 2**30:.1f}; use feed 'tf' or fewer examples"
        )
