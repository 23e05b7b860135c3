"""Sources: random-access sequences of examples.

`Source` says what one has. Those of image files (`CroppingSource`) can cut out other
squares than the centred one; those of records (`RecordSource`) hold embeddings and
tokens besides. To add a source, write sources/<name>.py and name its class in SOURCES;
one of image files is an ImageSource (image_source.py).
"""

import importlib
import inspect
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError

# config.data.source -> (module, class)
SOURCES = {
    "aligned": ("unclip_jax.data.aligned.reader", "AlignedArrays"),
    "clip_retrieval": ("unclip_jax.data.sources.clip_retrieval", "ClipRetrieval"),
    "folder": ("unclip_jax.data.sources.folder", "Folder"),
    "icons": ("unclip_jax.data.sources.icons", "Icons"),
    "mixture": ("unclip_jax.data.sources.mixture", "make_mixture"),
    "parquet": ("unclip_jax.data.sources.parquet", "Parquet"),
    "records": ("unclip_jax.data.records", "RecordReader"),
    "tfds": ("unclip_jax.data.sources.tfds", "Tfds"),
    "webdataset": ("unclip_jax.data.sources.webdataset", "WebDataset"),
}

CLIP_VOCAB_SIZE = 49408

# Keys of config.data that are the loader's, not the source's, and their defaults.
LOADER_DEFAULTS: dict[str, Any] = {
    "source": str,  # one of SOURCES; it has no default
    "feed": "tf",
    "tokenizer": "",
    "context_length": None,
    "vocab_size": CLIP_VOCAB_SIZE,
    "degradation": {},
}
LOADER_KEYS = tuple(LOADER_DEFAULTS)


# Arrays of an example that it has one of per caption.
PER_CAPTION = ("tokens", "clip_text", "text_states")

logger = logging.getLogger(__name__)


@runtime_checkable
class Source(Protocol):
    """A random-access sequence of examples.

    Attributes:
      image_size: side of its square images; None without images.
      fingerprint: another for other examples.
    """

    image_size: int | None
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> dict[str, Any]:
        """Returns {"key": str, "caption": str, "image": uint8 (H, W, 3), ...}.

        Several captions are all in "captions"; "caption" is the first. Where captions
        of other words can mean the same, those have the same "caption_group".

        Raises BadRecord for an example that cannot be read.
        """
        ...

    def captions(self, n: int | None = None) -> list[str]:
        """Returns all captions of the first n examples (None: of all)."""
        ...


@runtime_checkable
class CroppingSource(Source, Protocol):
    """A source that gives any of the largest squares of its images.

    Attributes:
      crop: which one training asks for, "center" or "random".
    """

    crop: str

    def cropped(self, i: int, position: float | None) -> dict[str, Any]:
        """Returns source[i] with the square at `position`, see `images.to_square`."""
        ...


@runtime_checkable
class LoadingSource(CroppingSource, Protocol):
    """A source whose examples are read apart from being decoded."""

    def load_bytes(self, i: int) -> Any:
        """Reads what `decode` needs of example i; waits for a disk and does no more.

        Raises BadRecord for an example that cannot be read.
        """
        ...

    def decode(self, loaded: Any, position: float | None) -> dict[str, Any]:
        """Returns the example of a `load_bytes`, see `cropped`."""
        ...


@runtime_checkable
class CountingSource(Source, Protocol):
    """A source that says what it found besides its examples.

    Attributes:
      failed: {reason: how many} are no examples.
    """

    failed: Mapping[str, int]


@runtime_checkable
class EmbeddingSource(Source, Protocol):
    """A source of embeddings that another program made, without images.

    Attributes:
      embedding_convention: "raw" or "unit", see data/records.py.
    """

    embedding_convention: str


class BatchReader(Protocol):
    """Reads the arrays of several examples at once."""

    def fetch(self, indices: Sequence[int] | np.ndarray) -> list[Any]:
        """Reads the bytes of some examples, which `read_batch` then need not."""
        ...

    def read_batch(
        self,
        indices: Sequence[int] | np.ndarray,
        names: Sequence[str],
        caption_indices: Sequence[int] | np.ndarray | None = None,
        positions: np.ndarray | None = None,
        fetched: Sequence[Any] | None = None,
    ) -> "list[dict[str, np.ndarray] | BadRecord]":
        """Returns {name: array} of each example, or why it cannot be read.

        Args:
          indices: int (B,), the examples' numbers.
          names: of the arrays.
          caption_indices: int (B,), which of its captions each example's arrays of
            PER_CAPTION are of, modulo their number; None stacks those of all: (m, ...).
          positions: float (B,) in [0, 1), of the squares; None is the middle.
          fetched: of `fetch`; None reads now.
        """
        ...


@runtime_checkable
class ArraySource(Source, BatchReader, Protocol):
    """A source whose examples are arrays.

    Attributes:
      path: their folder.
      manifest: what is in them.
      arrays: {name: (dtype, shape)} of what each example holds.
      statistics: of the embeddings; None without them.
    """

    path: pathlib.Path
    manifest: dict[str, Any]
    arrays: Mapping[str, tuple[str, tuple[int, ...]]]
    statistics: Mapping[str, np.ndarray] | None


@runtime_checkable
class RecordSource(ArraySource, Protocol):
    """A source of records, see data/records.py.

    Attributes:
      tokenizer_folder: of the tokenizer that made the tokens.
    """

    tokenizer_folder: str


@runtime_checkable
class AlignedSource(ArraySource, Protocol):
    """A source of targets and conditions, see data/aligned."""

    def about_target(self) -> dict[str, Any]:
        """Returns the fields of DataSpec that say what target and conditions are."""
        ...


class BadRecord(UsageError):
    """An example that cannot be read.

    Attributes:
      key: the example's name.
      reason: what is wrong with it.
    """

    def __init__(self, key: str, reason: str):
        super().__init__(f"example {key!r} cannot be read: {reason}")
        self.key, self.reason = key, reason

    def __reduce__(self):
        return type(self), (self.key, self.reason)


class LeftOut(BadRecord):
    """An example that can be read, but that the config does not want."""


def captions_of(example: Mapping[str, Any]) -> Sequence[str]:
    """Returns all captions of a source's example, at least one."""
    return example.get("captions") or (example["caption"],)


def failed_of(source: Source) -> Mapping[str, int]:
    """Returns {reason: how many} of what a source found that are no examples."""
    return source.failed if isinstance(source, CountingSource) else {}


def check_examples(source: Source, name: str) -> None:
    """Warns of what in a source is no example; UsageError when it has none."""
    failed = ", ".join(f"{n:,}: {why}" for why, n in failed_of(source).items())
    if not len(source):
        found = f"; what it holds are no examples ({failed})" if failed else ""
        raise UsageError(f"{name} is empty{found}")
    if failed:
        logger.warning("%s: besides %d examples, %s", name, len(source), failed)


def has_random_crops(source: Source) -> bool:
    """Returns whether training sees another square of an image each time."""
    return isinstance(source, CroppingSource) and source.crop == "random"


def make_source(config_data) -> Any:
    """Builds the source that config.data names with the options given there.

    Args:
      config_data: mapping with "source" and the options of its class; the loader's
        own keys (LOADER_KEYS) are left alone.

    Raises:
      UsageError: no such source, or an option that is unknown, missing or of another
        type.
    """
    name = config_data.get("source")
    if not isinstance(name, str) or name not in SOURCES:
        raise UsageError(
            f"config.data.source {name!r}: expected one of {', '.join(SOURCES)}"
        )
    module, attribute = SOURCES[name]
    cls = getattr(importlib.import_module(module), attribute)
    known = parameters(cls)
    options = {k: config_data[k] for k in config_data if k not in LOADER_KEYS}
    config_lib.check_keys(options, [*known, *LOADER_KEYS], "config.data")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in options:
            raise UsageError(f"config.data lacks {key!r}, which source {name!r} needs")
        if key in options and parameter.annotation is not parameter.empty:
            value, kind = options[key], parameter.annotation
            config_lib.check_type(value, kind, f"config.data.{key}")
    source = cls(**options)
    if not options.get("subset"):
        share = options.get("held_out")
        if "held_out" in known and share not in (None, known["held_out"].default):
            raise UsageError(
                f"config.data.held_out = {share} is for a config.data.subset, 'train' "
                "or 'validation': name one"
            )
        return source
    from unclip_jax.data.sources.subset import Subset  # which knows this module

    return Subset(source, source.subset, source.held_out)


def source_defaults(config_data) -> dict[str, Any]:
    """Returns the defaults of config.data, in the form of config.defaults.

    Those of the loader and of the source that it names, if there is such a source.
    """
    name = config_data.get("source")
    if not isinstance(name, str) or name not in SOURCES:
        return LOADER_DEFAULTS
    module, attribute = SOURCES[name]
    known = parameters(getattr(importlib.import_module(module), attribute))
    values = {}
    for key, parameter in known.items():
        required, kind = parameter.default is parameter.empty, parameter.annotation
        values[key] = parameter.default
        if required or kind is parameter.empty:
            values[key] = str if kind is str else None
    return LOADER_DEFAULTS | values


def parameters(cls):
    """Returns {name: inspect.Parameter}; **options are those of the base class."""
    own = dict(inspect.signature(cls).parameters)
    for name, parameter in list(own.items()):
        if parameter.kind is parameter.VAR_KEYWORD:
            del own[name]
            own |= parameters(cls.__base__)
    return own
