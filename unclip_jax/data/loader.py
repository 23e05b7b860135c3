"""Batches: the same ones, bit for bit, from two feeds.

feed "tf"      a tf.data pipeline reads each step's examples with random access, two
               or more at a time, in order, ahead of the training step.
feed "arrays"  everything is read into memory once; no TensorFlow anywhere.

The global batch of a step is order.batch_indices(seed, step, ...) and nothing else, so
it is the same for both feeds, any number of processes and any start step.

An example that cannot be read is replaced by the next readable one (by number), the
same in both feeds; it is named in a warning once and counted in `Dataset.bad`. More
than 1% of them (and more than 16) are refused. What a source's filters leave out is
replaced likewise, and counted in `Dataset.left_out`. Of several captions, each epoch
reads the next. Where a source has crop="random", each row's square is drawn from (seed,
step, row) too.
"""

import collections
import itertools
import json
import logging
import os
import pathlib
import threading
from collections.abc import Sequence

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.data import order
from unclip_jax.data.degradations import make_degradation
from unclip_jax.data.sources import PER_CAPTION, BadRecord, LeftOut, make_source
from unclip_jax.data.tf_feed import tf_batches
from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write
from unclip_jax.tokenizer import Tokenizer, train_tokenizer

FEEDS = ("tf", "arrays")
MANY_CAPTIONS = 100_000  # as many as a tokenizer is trained on
CLIP_VOCAB_SIZE = 49408
SAMPLE_SIZE = 100_000  # embeddings that a codebook's quantiles are taken from
TRAINED_ON = "trained_on.json"  # next to a tokenizer trained here

logger = logging.getLogger(__name__)


def open_data(config_data, *, tokenizer_dir=None) -> "Dataset":
    """The data that config.data names.

    Args:
      config_data: mapping with
        source: "records", "icons" or another of data.sources.SOURCES;
        the source's own options: path for records, split, image_size ... for icons;
        feed: "tf" (default) or "arrays";
        tokenizer: a folder or public name; "" (default) is the records' own or, for a
          source of captions, one trained on them;
        context_length: tokens per caption; None is the tokenizer's own or, for one
          trained here, what the longest caption needs rounded up to a multiple of 4;
        vocab_size: at most so many, when one is trained (default CLIP's 49408);
        degradation: crops and degraded small pictures (see data.degradations).
      tokenizer_dir: where a tokenizer trained or fetched is kept; None is in memory.

    Raises:
      UsageError, FileNotFoundError: data that is missing or damaged, or options that
        do not fit it; FileExistsError: tokenizer_dir holds another tokenizer.
    """
    feed = config_data.get("feed", "tf")
    if feed not in FEEDS:
        raise UsageError(
            f"config.data.feed {feed!r}: expected one of {', '.join(FEEDS)}"
        )
    source = make_source(config_data)
    if len(source) < 1:
        raise UsageError(f"config.data.source {config_data['source']!r} is empty")
    if config_data.get("degradation") and source.image_size is None:
        raise UsageError("config.data.degradation: the records hold no images")
    if getattr(source, "crop", "center") == "random" and feed == "arrays":
        raise UsageError(
            "config.data.crop 'random' needs feed 'tf': feed 'arrays' reads each image "
            "once and keeps one square of it"
        )
    degrade = make_degradation(config_data.get("degradation"), source.image_size)
    manifest = getattr(source, "manifest", None)
    wanted = config_data.get("tokenizer") or ""
    length = config_data.get("context_length")
    if manifest is not None:
        _check_records(manifest, wanted, length, source)
        tokenizer = Tokenizer.load(source.tokenizer_folder)
        return Dataset(source, tokenizer, feed, degrade=degrade)
    if wanted:
        tokenizer = Tokenizer.load(wanted, length)
        folder = str(wanted)
        if tokenizer_dir is not None and not pathlib.Path(wanted).is_dir():
            tokenizer.save(tokenizer_dir)  # a public one: the run keeps its own copy
            folder = str(tokenizer_dir)
        return Dataset(source, tokenizer, feed, folder, degrade)
    size = config_data.get("vocab_size") or CLIP_VOCAB_SIZE
    tokenizer = _own_tokenizer(source, tokenizer_dir, size, length)
    folder = str(tokenizer_dir) if tokenizer_dir is not None else None
    return Dataset(source, tokenizer, feed, folder, degrade)


class Dataset:
    """Examples of a source as batches of arrays.

    Attributes:
      source: see data.sources.
      tokenizer: tokenizer.Tokenizer.
      shapes: {name: (shape, dtype)} of what a batch can hold, per example.
      info: dict for stages and checkpoints: num_examples, image_size, embed_dim,
        context_length, vocab_size, eot_id, fingerprint, clip_fingerprint,
        tokenizer_fingerprint, tokenizer_folder, embedding_convention, embedding_mean,
        embedding_std (float64 (D,)), embedding_scale (mean L2 norm),
        embedding_sample (the method, which reads only when called), crop_size and
        low_res_size (of a degradation), text_width, empty_text_states (L, W) and
        empty_clip_text (D,) (of text_states); None where the data has no such thing.
      bad: {key: reason} of the examples that could not be read so far.
      left_out: {reason: how often an example was left out for it so far}.
    """

    def __init__(
        self, source, tokenizer, feed="tf", tokenizer_folder=None, degrade=None
    ):
        self.source, self.tokenizer, self.feed = source, tokenizer, feed
        self.degrade = degrade
        self.bad, self.left_out = {}, collections.Counter()
        self._stored = hasattr(source, "arrays")  # records: tokens come ready
        size = source.image_size
        self.shapes = {} if size is None else {"image": ((size, size, 3), "uint8")}
        if self._stored:
            stored = source.arrays.items()
            self.shapes |= {name: (shape, dtype) for name, (dtype, shape) in stored}
            tokenizer_folder = source.tokenizer_folder
        else:
            self.shapes["tokens"] = ((tokenizer.context_length,), "int32")
        self._read_shapes = self.shapes
        if degrade is not None:
            self.shapes = degrade.shapes(self.shapes)
        self.info = self._info(tokenizer_folder)
        self._memory = {}  # name -> (n, ...) of the feed "arrays"; captions in a row
        self._spans = None  # (n,) first row and number of each example's captions
        self._lock = threading.Lock()

    def __len__(self):
        return len(self.source)

    def batches(
        self,
        names,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        rows: Sequence[int] | None = None,
    ):
        """An endless iterator of some rows of the global batches.

        Args:
          names: what each batch holds, of `shapes`.
          seed: of the order.
          batch_size: of the global batch, whatever the number of processes.
          start_step: the first step's number; the cost does not depend on it.
          rows: those of the global batch that this process needs; None for all.

        Returns:
          iterator of {name: (number of rows, ...)}.

        Raises UsageError at once for what does not fit.
        """
        names = self._check_names(names)
        if not 1 <= batch_size <= len(self):
            raise UsageError(
                f"batch_size {batch_size}: expected 1 to {len(self)}, the number of "
                "examples"
            )
        rows = np.arange(batch_size) if rows is None else np.asarray(rows)

        read = self.read
        if self.feed == "arrays":
            self._materialise(self._inputs(names))
            read = self._remember

        def make(step):
            indices = order.batch_indices(seed, step, batch_size, len(self))
            turns = order.batch_turns(seed, step, batch_size, len(self), indices)
            inputs = self._inputs(names)
            if getattr(self.source, "crop", "center") == "random":
                positions = order.crop_positions(seed, step, rows)
                batch = read(indices[rows], inputs, turns[rows], positions)
            else:
                batch = read(indices[rows], inputs, turns[rows])
            return self._degraded(batch, names, seed, step, rows)

        if self.feed == "arrays":
            return map(make, itertools.count(start_step))
        return tf_batches(make, self._shapes_of(names), len(rows), start_step)

    def take(self, n: int, names) -> dict[str, np.ndarray]:
        """The first n examples (fewer when there are fewer): {name: (n, ...)}."""
        names = self._check_names(names)
        first = np.arange(min(n, len(self)))
        batch = self.read(first, self._inputs(names))
        return self._degraded(batch, names, 0, 0, first)

    def captions(self, n: int) -> list[str]:
        """The captions of the first n examples."""
        return self.source.captions(n)

    def embedding_sample(self) -> dict[str, np.ndarray]:
        """{"clip_image", "clip_text"}: (n, D) of examples evenly spread over the data.

        n is SAMPLE_SIZE, or all there are; the same rows every time.
        """
        n = min(SAMPLE_SIZE, len(self))
        names = self._check_names(("clip_image", "clip_text"))
        return self.read(np.arange(n) * len(self) // n, names)

    def read(self, indices, names, turns=None, positions=None) -> dict[str, np.ndarray]:
        """The named arrays of whole examples, {name: (B, ...)}; see `bad`.

        `turns` (B,) say which caption of each, modulo their number; the first ones by
        default. `positions` (B,) in [0, 1) say which square of each image, for a source
        with crop="random"; the middle ones by default.
        """
        turns = np.zeros(len(indices), int) if turns is None else turns
        if self._stored:
            out, bad = self.source.read_batch(indices, names, turns)
            for row in bad:
                example = self._readable(int(indices[row]), names, int(turns[row]))
                for name in names:
                    out[name][row] = example[name]
            return out
        shapes = {name: self._read_shapes[name] for name in names}
        out = {
            name: np.empty((len(indices), *shape), dtype)
            for name, (shape, dtype) in shapes.items()
        }
        captions = []
        for row, (i, turn) in enumerate(zip(indices, turns, strict=True)):
            position = None if positions is None else positions[row]
            example = self._readable(int(i), names, int(turn), position)
            several = captions_of(example)
            captions.append(several[turn % len(several)])
            if "image" in names:
                out["image"][row] = example["image"]
        if "tokens" in names:
            out["tokens"] = self.tokenizer.encode(captions)
        return out

    def _inputs(self, names):
        return names if self.degrade is None else self.degrade.inputs(names)

    def _degraded(self, batch, names, seed, step, rows):
        if self.degrade is None:
            return batch
        return self.degrade(batch, names, seed, step, rows)

    def _shapes_of(self, names):
        return {name: self.shapes[name] for name in names}

    def _readable(self, i, names, turn, position=None):
        """Example i, or the next one that can be read; see RecordReader.read."""
        for place in range(i, i + len(self)):
            try:
                if self._stored:
                    return self.source.read(place % len(self), names, turn)
                if position is not None:
                    return self.source.cropped(place % len(self), position)
                return self.source[place % len(self)]
            except LeftOut as left_out:
                self._count_left_out(left_out.reason)
            except BadRecord as bad:
                self._count(bad)
        why = ", ".join(sorted(self.left_out) + sorted(set(self.bad.values()))[:3])
        raise UsageError(
            f"none of the {len(self)} examples can be used ({why}): repair the data, "
            "or let config.data leave fewer out"
        )

    def _count_left_out(self, reason):
        with self._lock:
            self.left_out[reason] += 1
            count = self.left_out[reason]
        if count in (1, 1000, 1_000_000):
            logger.warning("%s left out so far for %s", f"{count:,}", reason)

    def _count(self, bad):
        with self._lock:
            if bad.key in self.bad:
                return
            self.bad[bad.key] = bad.reason
            count = len(self.bad)
        logger.warning("%s; the next readable one takes its place", bad)
        if count > max(16, len(self) // 100):
            raise UsageError(
                f"{count} of {len(self)} examples cannot be read, the last: {bad}; "
                "repair the data or make it again"
            )

    def _check_names(self, names):
        names = list(names)
        for name in names:
            if name not in self.shapes:
                raise UsageError(
                    f"the data has {', '.join(self.shapes)}, but no {name!r}: make "
                    "records that have it with `python -m unclip_jax.embed`"
                )
        return names

    def _materialise(self, names):
        """Every example's arrays in memory, read once."""
        missing = [name for name in names if name not in self._memory]
        if missing:
            _check_memory(len(self), [self._read_shapes[name] for name in missing])
            self._memory |= self._read_all(missing)

    def _read_all(self, names):
        """{name: (n, ...)}, or (captions of all examples, ...) for PER_CAPTION."""
        whole = [name for name in names if name not in PER_CAPTION]
        out = {
            name: np.empty((len(self), *shape), dtype)
            for name, (shape, dtype) in self._read_shapes.items()
            if name in whole
        }
        parts = {name: [] for name in names if name not in whole}
        counts, captions = np.ones(len(self), np.int64), []
        for i in range(len(self)):
            example = self._readable(i, names, None)
            for name in whole:
                out[name][i] = example[name]
            if self._stored:
                for name, found in parts.items():
                    found.append(example[name])
                    counts[i] = len(example[name])
            else:
                captions += captions_of(example)
                counts[i] = len(captions_of(example))
        if parts:
            self._spans = np.cumsum(counts) - counts, counts
        if self._stored:
            return out | {name: np.concatenate(found) for name, found in parts.items()}
        return out | ({"tokens": self.tokenizer.encode(captions)} if parts else {})

    def _remember(self, indices, names, turns):
        """As `read`, from memory."""
        out = {}
        for name in names:
            rows = indices
            if name in PER_CAPTION:
                first, count = (span[indices] for span in self._spans)
                rows = first + turns % count
            out[name] = self._memory[name][rows]
        return out

    def _info(self, tokenizer_folder):
        manifest = getattr(self.source, "manifest", {})
        statistics = getattr(self.source, "statistics", None) or {}
        scale = statistics.get("mean_norm")
        (*_, text_width), _ = self.shapes.get("text_states", ((None,), ""))
        return {
            "num_examples": len(self),
            "image_size": self.source.image_size,
            "crop_size": self.degrade and self.degrade.crop,
            "low_res_size": self.degrade and self.degrade.low_res_size,
            "embed_dim": manifest.get("embed_dim"),
            "context_length": self.tokenizer.context_length,
            "vocab_size": self.tokenizer.vocab_size,
            "eot_id": self.tokenizer.eot_id,
            "fingerprint": self.source.fingerprint,
            "clip_fingerprint": manifest.get("clip_fingerprint"),
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "tokenizer_folder": tokenizer_folder,
            "embedding_convention": manifest.get("embedding_convention"),
            "embedding_mean": statistics.get("mean"),
            "embedding_std": statistics.get("std"),
            "embedding_scale": None if scale is None else float(scale),
            "embedding_sample": None if scale is None else self.embedding_sample,
            "text_width": text_width,
            "empty_text_states": statistics.get("empty_text_states"),
            "empty_clip_text": statistics.get("empty_clip_text"),
        }


def captions_of(example) -> Sequence[str]:
    """All captions of a source's example, at least one."""
    return example.get("captions") or (example["caption"],)


def _check_memory(count, shapes) -> None:
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


def _check_records(manifest, wanted, length, source) -> None:
    """The tokens are written already: another tokenizer can't be asked for."""
    if length not in (None, manifest["context_length"]):
        raise UsageError(
            f"config.data.context_length is {length}, but the records in "
            f"{source.path} have {manifest['context_length']} tokens per caption"
        )
    if wanted:
        tokenizer = Tokenizer.load(wanted, manifest["context_length"])
        if tokenizer.fingerprint != manifest["tokenizer_fingerprint"]:
            raise UsageError(
                f"config.data.tokenizer {str(wanted)!r} is not the tokenizer of the "
                f"records in {source.path}; leave it out"
            )


def _own_tokenizer(source, folder, vocab_size, context_length):
    """A tokenizer trained on the source's captions, or the one trained before."""
    what = {
        "source_fingerprint": source.fingerprint,
        "vocab_size": vocab_size,
        "context_length": context_length,
    }
    note = None if folder is None else pathlib.Path(folder) / TRAINED_ON
    if note is not None and note.is_file():
        found = json.loads(note.read_text(encoding="utf-8"))
        config_lib.check_keys(found, what, str(note))
        other = [name for name in what if found.get(name) != what[name]]
        if other:
            raise FileExistsError(
                f"{str(folder)!r} holds a tokenizer trained otherwise ({other[0]} was "
                f"{found.get(other[0])!r}, now {what[other[0]]!r}); choose another "
                "workdir or remove it"
            )
        return Tokenizer.load(folder)
    captions = source.captions(MANY_CAPTIONS)
    tokenizer = train_tokenizer(captions, None, vocab_size)
    if context_length is None:
        context_length = fitting_length(tokenizer, captions)
    tokenizer.context_length = context_length
    if folder is not None:
        tokenizer.save(folder)
        atomic_write(note, json.dumps(what))
    return tokenizer


def fitting_length(tokenizer, captions) -> int:
    """Tokens the longest caption needs, start and end included, in whole fours."""
    tokens = tokenizer.encode(captions)
    longest = 2 + int((tokens[:, 1:] != tokenizer.eot_id).sum(axis=1).max())
    return min(-(-longest // 4) * 4, tokenizer.context_length)
