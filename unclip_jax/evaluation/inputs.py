"""What an evaluation reads: captions, true images, the reference."""

import concurrent.futures
import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unclip_jax.data.sources import make_source
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.config import EvaluateConfig
from unclip_jax.evaluation.features import gaussian
from unclip_jax.evaluation.features.gaussian import GaussianStatistics
from unclip_jax.evaluation.image_sets import Images, SourceImages, open_images


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

    @property
    def captions(self) -> list[str]:
        """The N captions."""
        return [example["caption"] for example in self.fields]

    def first(self, count: int) -> "Examples":
        """The first `count` of them."""
        images = self.images.first(count)
        return Examples(self.source, self.indices[:count], self.fields[:count], images)


def read_examples(config: EvaluateConfig) -> Examples:
    """The first (or random, by the seed) `count` examples of config.data.

    Raises:
      UsageError: the source has fewer, or fewer pass the caption filter.
    """
    source = make_source(config.data)
    keep, passing = find_filter(config.caption_filter), np.arange(len(source))
    if keep is not None:
        numbers = [i for i in passing if keep(describe(source, int(i))["caption"])]
        passing = np.array(numbers, np.int64)
    indices = passing[select(len(passing), config.count, config, "config.count")]
    fields = [describe(source, int(i)) for i in indices]
    images = SourceImages(source, indices, config.crop.name, config.crop.size)
    return Examples(source, indices, fields, images)


def describe(source: Any, i: int) -> dict[str, Any]:
    """Example i without its image, which is not decoded where the source allows."""
    if hasattr(source, "find_captions"):
        return {"key": str(i), "caption": source.find_captions(i)[0]}
    example = dict(source[i])
    del example["image"]
    return example


def read_keys(examples: Examples) -> list[str]:
    """The names of examples in their source; those of files are read for it."""
    if not hasattr(examples.source, "load"):
        return [example["key"] for example in examples.fields]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        load = examples.source.load
        return [*pool.map(lambda i: load(int(i)).key, examples.indices)]


def find_filter(name: str) -> Callable[[str], Any] | None:
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


def read_reference(config: EvaluateConfig) -> Images | GaussianStatistics | None:
    """The reference.

    Raises:
      UsageError: more than one is named, or the source has too few.
      FileNotFoundError: a file or folder that is not there.
    """
    reference, crop = config.reference, (config.crop.name, config.crop.size)
    named = [k for k in ("count", "images", "statistics") if getattr(reference, k)]
    if len(named) > 1:
        raise UsageError(
            f"config.reference names {' and '.join(named)}: set one of them only"
        )
    if reference.statistics:
        return gaussian.read(reference.statistics)
    if reference.images:
        return open_images(reference.images, *crop)
    if reference.count:
        source = make_source({**config.data, **reference.data})
        count = len(source) if reference.count == -1 else reference.count
        indices = select(len(source), count, config, "config.reference.count")
        return SourceImages(source, indices, *crop)
    return None


def select(available: int, count: int, config: EvaluateConfig, key: str) -> np.ndarray:
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
