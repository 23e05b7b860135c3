"""From a source to records: every example with its CLIP embeddings.

The same command continues an interrupted run, shard by shard. Examples that cannot be
read are left out, and the manifest names them; it counts those that filters leave out.
Of several captions all are kept. Beside the manifest, codes.json says what the
autoregressive prior's codes keep of the embeddings (see codes.py).
"""

import collections
import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from unclip_jax import config as config_lib
from unclip_jax.data.record_writer import RecordWriter
from unclip_jax.data.records import encode_image
from unclip_jax.data.sources import (
    PER_CAPTION,
    BadRecord,
    EmbeddingSource,
    LeftOut,
    LoadingSource,
    captions_of,
    check_examples,
    has_random_crops,
)
from unclip_jax.embedding import codes, given
from unclip_jax.embedding.config import EmbedConfig
from unclip_jax.embedding.frozen_clip import FrozenCLIP
from unclip_jax.embedding.hints import NAME as HINT
from unclip_jax.embedding.hints import HintFiles
from unclip_jax.embedding.latents import LatentEncoder
from unclip_jax.errors import UsageError
from unclip_jax.images import fit, to_square
from unclip_jax.interop.components import LoadRun
from unclip_jax.interop.frozen_autoencoder import FrozenAutoencoder
from unclip_jax.parallel import distributed
from unclip_jax.parallel.batched_runner import run_ahead
from unclip_jax.progress import ProgressLine

LOADERS = 256  # threads that wait for far storage
READERS = min(32, (os.cpu_count() or 4) + 4)  # that decode or draw, and pack


def embed(
    config: EmbedConfig, workdir: str | os.PathLike, load_run: LoadRun
) -> dict[str, dict]:
    """Embeds every split of the config.

    Args:
      config: see config.py.
      workdir: gets a folder of records per split.
      load_run: reads a run (training.checkpoint.load_run).

    Returns:
      {split: manifest}.

    Raises:
      UsageError: values that do not fit.
      FileNotFoundError: no CLIP there.
      FileExistsError: the folder of a split holds something else.
    """
    # all sources first: a mistake in the last should not cost hours
    sources = {split: config.open_source(split) for split in config.splits}
    for split, source in sources.items():
        check_examples(source, f"the source of {split}")
        if has_random_crops(source):
            raise UsageError(
                f"config.data.crop 'random' of split {split!r}: records hold "
                "the middle square of each image; random ones are for training"
            )
    fingerprints = {split: source.fingerprint for split, source in sources.items()}
    distributed.check_consistency(
        workdir, config_lib.to_plain(config), str(fingerprints)
    )
    clip = FrozenCLIP.load(
        config.clip,
        load_run,
        batch_size=config.batch_size,
        text_states=config.text_states,
        dtype=config.compute_dtype,
    )
    if config.min_similarity > -1 and "clip_text" not in clip.arrays:
        raise UsageError(
            "config.min_similarity: the texts of this CLIP have no embeddings that "
            "images could be compared with"
        )
    encoder = None
    if config.autoencoder:
        autoencoder = FrozenAutoencoder.load(
            config.autoencoder, load_run, config.compute_dtype
        )
        encoder = LatentEncoder(autoencoder, config.latent_std)
    hints = HintFiles(config.hints) if config.hints else None
    return {
        split: embed_source(
            source,
            pathlib.Path(workdir) / split,
            clip,
            encoder,
            hints,
            shard_size=config.shard_size,
            image_format=config.image_format,
            image_size=config.image_size,
            compact=config.compact,
            min_similarity=config.min_similarity,
            name=split,
        )
        for split, source in sources.items()
    }


def embed_source(
    source,
    folder: str | os.PathLike,
    clip: FrozenCLIP,
    encoder: LatentEncoder | None = None,
    hints: HintFiles | None = None,
    *,
    shard_size: int,
    image_format: str = "png",
    image_size: int = 0,
    compact: bool = False,
    min_similarity: float = -1.0,
    name: str = "records",
) -> dict:
    """Writes the records of one source, or what is missing of them.

    Processes take turns at the shards; they must see the same folder. Returns the
    manifest.

    Raises:
      UsageError: an empty source, images that are not square or differ in size, a
        CLIP that gives NaN.
      FileExistsError: `folder` holds something else.
    """
    module = clip.part.module
    chosen: dict[str, Any] = {}  # what older records do not have
    if min_similarity > -1:
        chosen["min_similarity"] = min_similarity
    if clip.pad_id is not None:
        chosen["pad_id"] = clip.pad_id
    is_given = isinstance(source, EmbeddingSource)  # no images: see given.py
    total = len(source)
    if total == 0:
        raise UsageError(f"the source of {name} is empty")
    arrays = {"tokens": ("int32", (module.context_length,)), **clip.arrays}
    if encoder is not None:
        if is_given:
            raise UsageError(
                f"config.autoencoder: the source of {name} has embeddings but no "
                "images to make latents of"
            )
        chosen["autoencoder_fingerprint"] = encoder.fingerprint
        arrays |= encoder.arrays(_image_size(source))
    if hints is not None:
        if is_given:
            raise UsageError(f"config.hints: the source of {name} has no images")
        chosen["hints"] = hints.fingerprint
        arrays |= hints.arrays(_image_size(source))

    def open_writer():
        return RecordWriter(
            folder,
            num_shards=-(-total // shard_size),
            image_size=None if is_given else image_size or _image_size(source),
            arrays=arrays,
            tokenizer=clip.tokenizer,
            source_fingerprint=source.fingerprint,
            clip_fingerprint=clip.fingerprint,
            embedding_convention=source.embedding_convention if is_given else "raw",
            extra={
                "image_format": image_format,
                "shard_size": shard_size,
                "compute_dtype": np.dtype(module.dtype).name,
                **chosen,
            },
            compact=compact,
            process=jax.process_index(),
        )

    first, several = jax.process_index() == 0, jax.process_count() > 1
    writer = open_writer() if first else None
    if several:  # the first process has claimed the folder: the others join
        multihost_utils.sync_global_devices(f"opened {name}")
    writer = writer or open_writer()

    finished = writer.finished_shards()
    ranges = {
        shard: range(shard * shard_size, min((shard + 1) * shard_size, total))
        for shard in range(writer.num_shards)
        if shard % jax.process_count() == jax.process_index()
    }
    done = sum(len(r) for shard, r in ranges.items() if shard in finished)
    progress, count = (
        ProgressLine(f"embedding {name}", "examples"),
        sum(map(len, ranges.values())),
    )
    if done < count:
        progress(done, count)
    keep = functools.partial(_kept_image, size=image_size, kind=image_format)
    with ThreadPoolExecutor(READERS) as pool, ThreadPoolExecutor(LOADERS) as loaders:
        for shard, indices in ranges.items():
            if shard not in finished:
                skipped: list[BadRecord] = []
                if is_given:
                    examples = given.examples(source, indices, clip, skipped, progress)
                else:
                    pools = pool, loaders
                    examples = _examples(
                        *(source, indices, clip, pools, skipped, progress, keep),
                        encoder,
                        hints,
                    )
                if min_similarity > -1:
                    examples = similar(examples, min_similarity, skipped)
                writer.write_shard(shard, examples, skipped, pool)
    if several:  # in the folder: collectives may time out when shards differ in length
        writer.wait(for_manifest=not first)
    if first:
        writer.finish({} if writer.is_finished() else _constants(clip))
    manifest = writer.finish()  # on the other processes: reads it
    if first:
        print(f"{folder}: {_summary(manifest)}")
        if said := codes.report(folder):
            print(f"{folder}: {said}")
    return manifest


def _examples(
    source,
    indices,
    clip,
    pools,
    skipped,
    progress,
    keep=lambda image: image,
    encoder=None,
    hints=None,
) -> Iterator[dict]:
    """Examples with tokens and embeddings, in order; the device runs one batch ahead.

    `keep` makes of an image what a record holds. An `encoder` adds latents, `hints` add
    theirs. Of the two pools, one's threads decode, the other's wait for bytes. The
    BadRecords of those that cannot be read are appended to `skipped`.
    """
    size = clip.part.module.image_size
    pool, loaders = pools
    loading = source if isinstance(source, LoadingSource) else None

    def read(item):
        if loading is None:
            example = source[item]
        else:
            example = loading.decode(item.result(), None)
        image = example["image"]
        return {
            **example,
            "shape": image.shape,
            "scaled": fit(image, size),
            "image": keep(image),
            **({} if hints is None else {HINT: hints.read(example["key"], len(image))}),
            **({} if encoder is None else {"pixels": image}),
        }

    items = indices
    if loading is not None:
        items = _begin_ahead(loading.load_bytes, indices, loaders, 2 * LOADERS)
    readable = _read_ahead(read, items, pool, 2 * clip.batch_size, skipped)

    def batches():
        while batch := list(itertools.islice(readable, clip.batch_size)):
            yield batch

    def run(batch):
        _same_shape(batch)
        captions = [captions_of(example) for example in batch]
        tokens = clip.tokenizer.encode([several[0] for several in captions])
        scaled = np.stack([example["scaled"] for example in batch])
        more = _embed_more(clip, captions)
        latents = []
        if encoder is not None:
            latents = encoder.encode([example.pop("pixels") for example in batch])
        return tokens, clip.embed(scaled, tokens), more, latents

    count = 0
    for batch, running in run_ahead(run, batches()):
        yield from _finished(batch, *running)
        progress.add(len(batch))
        count += len(batch)
    progress.add(len(indices) - count)  # what was skipped


def _embed_more(clip, captions) -> list[dict]:
    """Tokens and embeddings, on their way, of all captions but each first one."""
    texts = [caption for several in captions for caption in several[1:]]
    parts = []
    for k in range(0, len(texts), clip.batch_size):
        tokens = clip.tokenizer.encode(texts[k : k + clip.batch_size])
        parts.append({"tokens": tokens, **clip.embed_text(tokens)})
    return parts


def _finished(batch, tokens, running, more, latents) -> Iterator[dict]:
    # asarray waits for the device
    made = {"tokens": tokens} | {name: np.asarray(a) for name, a in running.items()}
    made |= _joined(latents)
    others = _joined(more)
    next_other = 0
    for i, example in enumerate(batch):
        captions = captions_of(example)
        found: dict[str, Any] = {"key": example["key"], "caption": captions[0]}
        found |= {k: example[k] for k in ("image", HINT) if k in example}
        found |= {name: rows[i] for name, rows in made.items()}
        if len(captions) > 1:
            found["captions"] = captions
            mine = slice(next_other, next_other + len(captions) - 1)
            next_other = mine.stop
            for name, rows in others.items():
                found[name] = np.concatenate([found[name][None], rows[mine]])
        yield found


def _joined(parts) -> dict[str, np.ndarray]:
    """The arrays of several parts; padding is at the end of the last one only."""
    return {
        name: np.concatenate([np.asarray(part[name]) for part in parts])
        for name in (parts[0] if parts else ())
    }


def similar(examples, least: float, skipped) -> Iterator[dict]:
    """Examples with their captions whose cosine with the image is at least `least`.

    Those without any are appended to `skipped`.
    """
    for example in examples:
        captions = captions_of(example)
        image, text = example["clip_image"], np.atleast_2d(example["clip_text"])
        norms = np.linalg.norm(image) * np.linalg.norm(text, axis=1)
        good = np.flatnonzero(text @ image >= least * norms)
        if not good.size:
            reason = f"a CLIP similarity below min_similarity {least:g}"
            skipped.append(LeftOut(example["key"], reason))
            continue
        if len(good) < len(captions):
            for name in PER_CAPTION:
                if name in example:
                    kept = example[name][good]
                    example[name] = kept if len(good) > 1 else kept[0]
            captions = tuple(captions[k] for k in good.tolist())
            example |= {"caption": captions[0], "captions": captions}
        yield example


def _constants(clip) -> dict[str, np.ndarray]:
    """What CLIP makes of an empty image and, with text states, of no caption; float32.

    The image is one of zeros, see FrozenCLIP.embed_zeros.
    """
    made = {}
    if clip.part.module.vision_depth:
        made["empty_clip_image"] = clip.embed_zeros()
    if "text_states" in clip.arrays:
        texts = clip.embed_text(clip.tokenizer.encode([""]))
        for name, rows in texts.items():
            made[f"empty_{name}"] = np.asarray(rows, np.float32)[0]
    return made


def _begin_ahead(read, items: Iterable, pool, ahead: int) -> Iterator[Future]:
    """Futures of read(item), in order; of up to `ahead` it has begun."""
    futures: collections.deque[Future] = collections.deque()
    remaining = iter(items)
    while True:
        for item in itertools.islice(remaining, ahead - len(futures)):
            futures.append(pool.submit(read, item))
        if not futures:
            return
        yield futures.popleft()


def _read_ahead(read, items: Iterable, pool, ahead: int, skipped):
    """read(item) of those that can be read, in order, up to `ahead` being read."""
    for future in _begin_ahead(read, items, pool, ahead):
        try:
            yield future.result()
        except BadRecord as bad:
            skipped.append(bad)


def _image_size(source) -> int:
    """Side of the first readable example's image."""
    for i in range(len(source)):
        try:
            example = source[i]
        except BadRecord:
            continue
        height, width, *_ = example["image"].shape
        if height != width:
            raise UsageError(
                f"example {example['key']!r} is {width} x {height} pixels; records "
                "hold square images: choose a source that crops them"
            )
        return height
    raise UsageError("no example of the source can be read at all")


def _kept_image(image: np.ndarray, size: int, kind: str) -> bytes | np.ndarray:
    """The image of a record: scaled, unless `size` is 0, as sources do, and encoded."""
    if size:
        image = to_square(Image.fromarray(image), size)
    return encode_image(image, kind)


def _same_shape(batch) -> None:
    for example in batch:
        if example["shape"] != batch[0]["shape"]:
            raise UsageError(
                f"example {example['key']!r} has an image of shape {example['shape']}, "
                f"{batch[0]['key']!r} one of {batch[0]['shape']}: they must be of one "
                "size"
            )


def _summary(manifest) -> str:
    skipped = manifest["skipped"]
    text = f"{manifest['num_records']:,} records in {len(manifest['shards'])} shards"
    if skipped:
        named = "; ".join(f"{bad['key']} ({bad['reason']})" for bad in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        text += f", {len(skipped)} unreadable examples left out: {named}{more}"
    for reason, count in manifest["left_out"].items():
        text += f", {count:,} left out for {reason}"
    return text
