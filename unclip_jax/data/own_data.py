"""Looks at a folder of anybody's data: which source it is, and what is in it."""

import contextlib
import dataclasses
import io
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from unclip_jax.data.own_tokenizer import fitting_length
from unclip_jax.data.sources import (
    BadRecord,
    check_examples,
    failed_of,
    make_source,
)
from unclip_jax.data.sources.image_source import ImageSource
from unclip_jax.errors import UsageError
from unclip_jax.files import list_files
from unclip_jax.images import opened
from unclip_jax.tokenizer import train_tokenizer

# suffix of files -> (the source that reads them, their pattern), the first one found
KINDS = {
    ".tar": ("webdataset", "*.tar"),
    ".parquet": ("parquet", "*.parquet"),
}
TRAINING, VALIDATION = ("train",), ("validation", "valid", "val")
SAMPLE = 64  # images whose size is looked at
CAPTIONS = 20_000  # that a tokenizer is tried on


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnData:
    """What a folder holds.

    Attributes:
      options: of config.data.
      splits: {"train", "validation"} -> what differs from `options`.
      counts: {"train", "validation"} -> examples.
      failed: {reason: how many} are no examples.
      side: median of the shorter sides of some images, in pixels.
      vocab_size, context_length: of a tokenizer for the captions.
      prompts: some captions of the validation, none twice.
    """

    options: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, Any]]
    counts: Mapping[str, int]
    failed: Mapping[str, int]
    side: int
    vocab_size: int
    context_length: int
    prompts: tuple[str, ...]


def inspect_folder(path: str, vocab_size: int, prompts: int = 8) -> OwnData:
    """Finds out what is in a folder or file.

    Args:
      path: a folder of images with captions, of tars or of parquet files.
      vocab_size: of the tokenizer, at most.
      prompts: how many of the validation's captions are asked for.

    Raises:
      FileNotFoundError: no such path, or nothing to train on in it.
      UsageError: files that cannot be read, or too few examples.
    """
    root = pathlib.Path(path)
    if not root.exists():
        raise FileNotFoundError(f"--data {str(path)!r} does not exist")
    options, splits = _find_source(root)
    sources = {name: make_source({**options, **splits[name]}) for name in splits}
    for name, source in sources.items():
        check_examples(source, f"the source of {name}")
    train, validation = sources["train"], sources["validation"]
    if len(validation) < 2:
        raise UsageError(
            f"{path} has {len(train)} examples: too few to hold any out for validation"
        )
    captions = train.captions(CAPTIONS)
    tokenizer = train_tokenizer(captions, None, vocab_size)
    held_out = validation.captions(CAPTIONS)
    return OwnData(
        options=options,
        splits=splits,
        counts={name: len(source) for name, source in sources.items()},
        failed=failed_of(train),
        side=_median_side(train),
        vocab_size=vocab_size,
        context_length=fitting_length(tokenizer, captions),
        prompts=_spread(dict.fromkeys(held_out), prompts),
    )


def _find_source(root: pathlib.Path) -> tuple[dict[str, Any], dict[str, dict]]:
    """(options, splits) of the source that reads the files below `root`."""
    names = list_files(root, tuple(KINDS)) if root.is_dir() else [root.name]
    suffixes = {pathlib.PurePath(name).suffix.lower() for name in names}
    found = [kind for suffix, kind in KINDS.items() if suffix in suffixes]
    source, pattern = found[0] if found else ("folder", "")
    options: dict[str, Any] = {"source": source, "path": str(root)}
    for training in TRAINING:
        for validation in VALIDATION:
            if (root / training).is_dir() and (root / validation).is_dir():
                paths = str(root / training), str(root / validation)
                return options, {
                    "train": {"path": paths[0]},
                    "validation": {"path": paths[1]},
                }
            starts = [pathlib.PurePath(name).name.lower() for name in names]
            if pattern and all(
                any(name.startswith(start) for name in starts)
                for start in (training, validation)
            ):
                return options, {
                    "train": {"files": f"**/{training}{pattern}"},
                    "validation": {"files": f"**/{validation}{pattern}"},
                }
    return options, {name: {"subset": name} for name in ("train", "validation")}


def _median_side(source: ImageSource) -> int:
    """The median of the shorter sides of some images, in pixels."""
    sides = []
    for i in _spread(range(len(source)), SAMPLE):
        with contextlib.suppress(BadRecord):
            raw = source.load(i)
            with contextlib.suppress(ValueError):
                with opened(io.BytesIO(raw.image), raw.key) as image:
                    sides.append(min(image.size))
    if not sides:
        raise UsageError("none of the images that were tried can be read")
    return int(statistics.median(sides))


def _spread(items, count: int) -> tuple:
    """`count` of the items, or all, evenly spread."""
    items = tuple(items)
    n = min(count, len(items))
    return tuple(items[i * len(items) // n] for i in range(n))
