"""Sources: random-access sequences of examples.

A source has

    len(source)
    source[i] -> {"key": str, "image": uint8 (H, W, 3), "caption": str, ...}; where
        captions of other words can mean the same, those have the same "caption_group"
    source.captions(n) -> list of the captions of the first n examples
    source.fingerprint -> str, another for other examples

and raises BadRecord for an example that cannot be read. Examples with several captions
hold them all in "captions"; "caption" is the first. To add a source, write
sources/<name>.py and name its class in SOURCES; one of picture files is a PictureSource
(pictures.py).
"""

import importlib
import inspect

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError

# config.data.source -> (module, class)
SOURCES = {
    "clip_retrieval": ("unclip_jax.data.sources.clip_retrieval", "ClipRetrieval"),
    "folder": ("unclip_jax.data.sources.folder", "Folder"),
    "icons": ("unclip_jax.data.sources.icons", "Icons"),
    "mixture": ("unclip_jax.data.sources.mixture", "Mixture"),
    "parquet": ("unclip_jax.data.sources.parquet", "Parquet"),
    "records": ("unclip_jax.data.records", "RecordReader"),
    "tfds": ("unclip_jax.data.sources.tfds", "Tfds"),
    "webdataset": ("unclip_jax.data.sources.webdataset", "WebDataset"),
}

# Keys of config.data that are the loader's, not the source's.
LOADER_KEYS = (
    "source",
    "feed",
    "tokenizer",
    "context_length",
    "vocab_size",
    "degradation",
)


# Arrays of an example that it has one of per caption.
PER_CAPTION = ("tokens", "clip_text", "text_states")


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


def make_source(config_data):
    """The source that config.data names, built with the options given there.

    Args:
      config_data: mapping with "source" and the options of its class; the loader's
        own keys (LOADER_KEYS) are left alone.

    Raises:
      UsageError: no such source, or an unknown or missing option.
    """
    name = config_data.get("source")
    if name not in SOURCES:
        raise UsageError(
            f"config.data.source {name!r}: expected one of {', '.join(SOURCES)}"
        )
    module, attribute = SOURCES[name]
    cls = getattr(importlib.import_module(module), attribute)
    parameters = _parameters(cls)
    options = {k: config_data[k] for k in config_data if k not in LOADER_KEYS}
    config_lib.check_keys(options, [*parameters, *LOADER_KEYS], "config.data")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            raise UsageError(f"config.data lacks {key!r}, which source {name!r} needs")
    return cls(**options)


def _parameters(cls):
    """{name: inspect.Parameter} of a class; **options are its base class's."""
    parameters = dict(inspect.signature(cls).parameters)
    for name, parameter in list(parameters.items()):
        if parameter.kind is parameter.VAR_KEYWORD:
            del parameters[name]
            parameters |= _parameters(cls.__base__)
    return parameters
