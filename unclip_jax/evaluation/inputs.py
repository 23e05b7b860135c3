"""What an evaluation reads: captions, true images, the reference."""

import concurrent.futures
import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.data.sources import make_source
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.features import gaussian
from unclip_jax.evaluation.image_sets import SourceImages, open_images

SELECT = ("first", "random")
REFERENCE_KEYS = ("data", "count", "images", "statistics")


@dataclasses.dataclass(frozen=True)
class Examples:
    """What the images should show.

    Attributes:
      source: the data source.
      indices: int64 (N,) numbers of the examples in it.
      fields: N dicts of the examples' fields, without the image.
      images: the true images.
    """

    source: Any
    indices: np.ndarray
    fields: Sequence[dict]
    images: SourceImages


def read_examples(config, count):
    """The first (or random, by the seed) `count` examples of config.data.

    Raises:
      UsageError: the source has fewer, or none passes the caption filter.
    """
    source = make_source(config.data)
    keep = caption_filter(config.caption_filter)
    if keep is None:
        indices = select(len(source), count, config, "config.count")
    else:
        numbers = range(len(source))
        passing = [i for i in numbers if keep(describe(source, i)["caption"])]
        passing = np.array(passing, np.int64)
        chosen = select(len(passing), count, config, "config.count")
        indices = passing[chosen]
    fields = [describe(source, int(i)) for i in indices]
    images = SourceImages(source, indices, config.crop.name, config.crop.size)
    return Examples(source, indices, fields, images)


def open_records(data):
    """The source of config.data; UsageError if it has no embeddings."""
    source = make_source(data)
    if getattr(source, "manifest", {}).get("clip_fingerprint") is None:
        raise UsageError(
            f"config.data.source {data['source']!r} has no embeddings: make records "
            "with `python -m unclip_jax.embed`"
        )
    return source


def check_clip(source, records, model, export):
    """The fingerprint of the CLIP that records and a model (an UnCLIP) share.

    `records` and `export` are their folders. Raises UsageError if it is not the same.
    """
    theirs = source.manifest["clip_fingerprint"]
    own = model.stack.part("clip").clip_fingerprint
    if own != theirs:
        raise UsageError(
            f"the records in {records} are of the CLIP {theirs[:12]}..., {export} has "
            f"{own[:12]}...: embed the data with that export"
        )
    return theirs


def draw_examples(source, count, seed) -> list[dict]:
    """`count` examples of a source, drawn by the seed, in their order there.

    Raises:
      UsageError: the source has fewer.
    """
    if count > len(source):
        raise UsageError(
            f"config.count = {count}, but the data has {len(source)} examples"
        )
    random = np.random.default_rng(seed)
    rows = np.sort(random.choice(len(source), count, replace=False))
    return [source[int(i)] for i in rows]


def describe(source, i):
    """Example i without its image, which is not decoded where the source allows."""
    if hasattr(source, "find_captions"):
        return {"key": str(i), "caption": source.find_captions(i)[0]}
    example = dict(source[i])
    del example["image"]
    return example


def read_keys(examples) -> list[str]:
    """The names of examples in their source; those of files are read for it."""
    if not hasattr(examples.source, "load"):
        return [example["key"] for example in examples.fields]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        load = examples.source.load
        return [*pool.map(lambda i: load(int(i)).key, examples.indices)]


def caption_filter(name):
    """The function that "package.module:function" names; None for "".

    It takes a caption and says whether to keep it.

    Raises:
      UsageError: there is no such function.
    """
    if not name:
        return None
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"config.caption_filter {name!r} is no 'package.module:function': {error}"
        ) from None


def read_reference(config):
    """The reference: Images, GaussianStatistics, or None.

    Raises:
      UsageError: more than one is named, or the source has too few.
      FileNotFoundError: a file or folder that is not there.
    """
    options = config.reference
    named = [k for k in ("count", "images", "statistics") if options.get(k)]
    if len(named) > 1:
        raise UsageError(
            f"config.reference names {' and '.join(named)}: set one of them only"
        )
    crop = (config.crop.name, config.crop.size)
    if options.get("statistics"):
        return gaussian.read(options.statistics)
    if options.get("images"):
        return open_images(options.images, *crop)
    if options.get("count"):
        differs = config_lib.to_plain(options.get("data") or {})
        source = make_source(
            type(config.data)({**config_lib.to_plain(config.data), **differs})
        )
        count = len(source) if options.count == -1 else options.count
        indices = select(len(source), count, config, "config.reference.count")
        return SourceImages(source, indices, *crop)
    return None


def select(available, count, config, key):
    """int64 (count,) numbers below `available`, the same every time."""
    if count > available:
        raise UsageError(
            f"{key} asks for {count} examples, but the source has only {available}; "
            "lower it"
        )
    if config.select == "first":
        return np.arange(count)
    random = np.random.default_rng(config.seed)
    return np.sort(random.choice(available, count, replace=False))
