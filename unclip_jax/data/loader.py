"""Batches: the same ones, bit for bit, from two feeds.

feed "tf"      a tf.data pipeline reads with random access, a few rows of a batch at a
               time and many of them at once, in order, ahead of the training step.
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

import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from unclip_jax.data import order
from unclip_jax.data.degradations import Degradation, make_degradation
from unclip_jax.data.own_tokenizer import open_own_tokenizer
from unclip_jax.data.readers import (
    CaptionReader,
    MemoryReader,
    ReplacingReader,
    Shapes,
)
from unclip_jax.data.sources import (
    CLIP_VOCAB_SIZE,
    AlignedSource,
    ArraySource,
    RecordSource,
    Source,
    check_examples,
    has_random_crops,
    make_source,
)
from unclip_jax.data.tf_feed import tf_batches
from unclip_jax.data_spec import DataSpec
from unclip_jax.errors import UsageError
from unclip_jax.tokenizer import Tokenizer

FEEDS = ("tf", "arrays")
SAMPLE_SIZE = 100_000  # embeddings that a codebook's quantiles are taken from


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
        degradation: crops and degraded small images (see data.degradations).
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
    check_examples(source, f"config.data.source {config_data['source']!r}")
    if config_data.get("degradation") and source.image_size is None:
        raise UsageError("config.data.degradation: the records hold no images")
    if has_random_crops(source) and feed == "arrays":
        raise UsageError(
            "config.data.crop 'random' needs feed 'tf': feed 'arrays' reads each image "
            "once and keeps one square of it"
        )
    degrade = make_degradation(config_data.get("degradation"), source.image_size)
    name = config_data.get("tokenizer") or ""
    length = config_data.get("context_length")
    folder = None if tokenizer_dir is None else str(tokenizer_dir)
    if isinstance(source, AlignedSource):
        if name or length is not None:
            raise UsageError(
                "config.data.tokenizer and context_length are for captions: aligned "
                "arrays have none, leave them out"
            )
        return Dataset(source, None, feed)
    if isinstance(source, RecordSource):
        _check_tokenizer(source, name, length)
        folder = source.tokenizer_folder
        tokenizer = Tokenizer.load(folder)
    elif name:
        tokenizer = Tokenizer.load(name, length)
        if folder is not None and not pathlib.Path(name).is_dir():
            tokenizer.save(folder)  # a public one: the run keeps its own copy
        else:
            folder = str(name)
    else:
        size = config_data.get("vocab_size") or CLIP_VOCAB_SIZE
        tokenizer = open_own_tokenizer(source, folder, size, length)
    return Dataset(source, tokenizer, feed, folder, degrade)


class Dataset:
    """Examples of a source as batches of arrays.

    Attributes:
      source: see data.sources.
      tokenizer: tokenizer.Tokenizer; None of aligned arrays.
      shapes: {name: (shape, dtype)} of what a batch can hold, per example.
      spec: what it says of itself to stages and checkpoints.
      bad: {key: reason} of the examples that could not be read so far.
      left_out: {reason: how often an example was left out for it so far}.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer | None,
        feed: str = "tf",
        tokenizer_folder: str | None = None,
        degrade: Degradation | None = None,
    ):
        """Reads nothing yet; see `open_data` for what the arguments are."""
        self.source, self.tokenizer, self.feed = source, tokenizer, feed
        self.degrade = degrade
        self._stored_shapes = _stored_shapes(source, tokenizer)
        self.shapes = self._stored_shapes
        if degrade is not None:
            self.shapes = degrade.shapes(self.shapes)
        if isinstance(source, ArraySource):
            reader = source
        else:
            assert tokenizer is not None
            reader = CaptionReader(source, tokenizer)
        self._reader = ReplacingReader(reader, len(source))
        self._memory = MemoryReader(self._reader, len(source), self._stored_shapes)
        self.bad, self.left_out = self._reader.bad, self._reader.left_out
        self.spec = self._spec(tokenizer_folder)

    def __len__(self):
        return len(self.source)

    def batches(
        self,
        names: Sequence[str],
        seed: int,
        batch_size: int,
        start_step: int = 0,
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Returns an endless iterator of some rows of the global batches.

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
        inputs = self._inputs(names)
        crops = has_random_crops(self.source)
        reader = self._reader
        if self.feed == "arrays":
            self._memory.load(inputs)
            reader = self._memory

        @functools.lru_cache(maxsize=64)  # a step is read in several parts, ahead
        def examples_of(step):
            indices = order.batch_indices(seed, step, batch_size, len(self), rows)
            captions = order.caption_indices(
                seed, step, batch_size, len(self), indices, rows
            )
            return indices, captions

        def fetch(step, first, end):
            return self._reader.fetch(examples_of(step)[0][first:end])

        def read(step, first=0, end=None, fetched=None):
            part = slice(first, end)
            indices, captions = (numbers[part] for numbers in examples_of(step))
            positions = order.crop_positions(seed, step, rows[part]) if crops else None
            batch = reader.read(indices, inputs, captions, positions, fetched)
            return self._degraded(batch, names, seed, step, rows[part])

        if self.feed == "arrays":
            return map(read, itertools.count(start_step))
        shapes = {name: self.shapes[name] for name in names}
        sizes = {name: self._stored_shapes[name] for name in inputs} | shapes
        row_bytes = sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize
            for shape, dtype in sizes.values()
        )
        return tf_batches(read, shapes, len(rows), start_step, row_bytes, fetch)

    def take(
        self, n: int, names: Sequence[str], rows: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Returns the first n examples (fewer when there are fewer), {name: (n, ...)}.

        Their first captions and middle squares. Where `rows` are given, only those are
        read (the last one, for what lies beyond it), and the others are zeros.
        """
        names = self._check_names(names)
        count = min(n, len(self))
        first = np.arange(count)
        if rows is not None:
            first = np.unique(np.minimum(rows, count - 1))
        batch = self._reader.read(first, self._inputs(names), np.zeros_like(first))
        batch = self._degraded(batch, names, 0, 0, first)
        if len(first) == count:
            return batch
        whole = {k: np.zeros((count, *a.shape[1:]), a.dtype) for k, a in batch.items()}
        for name, array in batch.items():
            whole[name][first] = array
        return whole

    def captions(self, n: int) -> list[str]:
        """Returns the captions of the first n examples."""
        return self.source.captions(n)

    def embedding_sample(self) -> dict[str, np.ndarray]:
        """Returns {"clip_image", "clip_text"}, (n, D), evenly spread over the data.

        Without texts' embeddings, the images' alone. n is SAMPLE_SIZE, or all there
        are; the same rows every time.
        """
        n = min(SAMPLE_SIZE, len(self))
        names = self._check_names(("clip_image",))
        names += ["clip_text"] if "clip_text" in self.shapes else []
        return self._reader.read(np.arange(n) * len(self) // n, names, np.zeros(n, int))

    def _inputs(self, names):
        return names if self.degrade is None else self.degrade.inputs(names)

    def _degraded(self, batch, names, seed, step, rows):
        if self.degrade is None:
            return batch
        return self.degrade(batch, names, seed, step, rows)

    def _check_names(self, names) -> list[str]:
        names = list(names)
        for name in names:
            if name not in self.shapes:
                raise UsageError(
                    f"the data has {', '.join(self.shapes)}, but no {name!r}: make "
                    "records that have it with `python -m unclip_jax.embed`"
                )
        return names

    def _spec(self, tokenizer_folder) -> DataSpec:
        if isinstance(self.source, AlignedSource):
            return DataSpec(
                num_examples=len(self),
                fingerprint=self.source.fingerprint,
                **self.source.about_target(),
            )
        assert self.tokenizer is not None
        manifest, statistics = {}, {}
        if isinstance(self.source, RecordSource):
            manifest, statistics = self.source.manifest, self.source.statistics or {}
        scale = statistics.get("mean_norm")
        more = manifest.get("extra", {})
        (*_, text_width), _ = self.shapes.get("text_states", ((None,), ""))
        latent_shape: Any = self.shapes.get("latents", (None,))[0]
        return DataSpec(
            num_examples=len(self),
            fingerprint=self.source.fingerprint,
            image_size=self.source.image_size,
            crop_size=self.degrade.crop if self.degrade else None,
            low_res_size=self.degrade.low_res_size if self.degrade else None,
            tokenizer_folder=tokenizer_folder,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            vocab_size=self.tokenizer.vocab_size,
            context_length=self.tokenizer.context_length,
            eot_id=self.tokenizer.eot_id,
            clip_fingerprint=manifest.get("clip_fingerprint"),
            embed_dim=manifest.get("embed_dim"),
            embedding_convention=manifest.get("embedding_convention"),
            embedding_mean=statistics.get("mean"),
            embedding_std=statistics.get("std"),
            embedding_scale=None if scale is None else float(scale),
            embedding_sample=None if scale is None else self.embedding_sample,
            text_width=text_width,
            empty_text_states=statistics.get("empty_text_states"),
            empty_clip_text=statistics.get("empty_clip_text"),
            empty_clip_image=statistics.get("empty_clip_image"),
            pad_id=more.get("pad_id"),
            autoencoder_fingerprint=more.get("autoencoder_fingerprint"),
            latent_shape=latent_shape,
            has_latent_std="latent_std" in self.shapes if latent_shape else None,
        )


def _stored_shapes(source: Source, tokenizer: Tokenizer | None) -> Shapes:
    """{name: (shape, dtype)} of what is read of an example, with one caption."""
    size = source.image_size
    shapes: dict = {} if size is None else {"image": ((size, size, 3), "uint8")}
    if not isinstance(source, ArraySource):
        assert tokenizer is not None
        return shapes | {"tokens": ((tokenizer.context_length,), "int32")}
    stored = source.arrays.items()
    return shapes | {name: (shape, dtype) for name, (dtype, shape) in stored}


def _check_tokenizer(source: RecordSource, name: str, length: int | None) -> None:
    """The tokens are written already: another tokenizer can't be asked for."""
    manifest = source.manifest
    if length not in (None, manifest["context_length"]):
        raise UsageError(
            f"config.data.context_length is {length}, but the records in "
            f"{source.path} have {manifest['context_length']} tokens per caption"
        )
    if name:
        tokenizer = Tokenizer.load(name, manifest["context_length"])
        if tokenizer.fingerprint != manifest["tokenizer_fingerprint"]:
            raise UsageError(
                f"config.data.tokenizer {str(name)!r} is not the tokenizer of the "
                f"records in {source.path}; leave it out"
            )
