"""Feature extractors: images in, features out; one file each, found by its name.

features/<name>.py has the extractor and a subclass of ExtractorOptions, whose fields
are what a config may set and which makes it. An extractor has

    image(uint8 (N, H, W, 3)) -> {layer: (N, D)}
    text(captions) -> (N, D)         where it knows language
    default                          the layer that its bare name means
    about                            what its numbers depend on
    label                            that in words

A metric's `features` names one of config's `extractors` (or "clip", the evaluated
model's own), and a layer after a slash where there are several: "inception",
"inception/768".
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.discovery import find_subclasses

OWN = "clip"  # the extractor that is always there: the evaluated model's CLIP


@dataclasses.dataclass(frozen=True)
class ExtractorOptions:
    """What a config can say about an extractor; its fields are the options."""

    def load(self, layers: Sequence[str]) -> Any:
        """Makes the extractor.

        Args:
          layers: those that metrics ask for, "" for its default one.
        """
        raise NotImplementedError


@functools.cache
def kinds() -> dict[str, type[ExtractorOptions]]:
    """All kinds of extractors by file name; files without one are helpers."""
    return find_subclasses(__name__, ExtractorOptions)


def read_options(config: Mapping[str, Any]) -> dict[str, ExtractorOptions]:
    """Reads config.extractors: {name: {option: value}}; "extractor" names the kind.

    Raises:
      UsageError: an unknown kind or option.
    """
    extractors = {}
    for name, options in config_lib.to_plain(config).items():
        options = dict(options or {})
        kind = options.pop("extractor", name)
        where = f"config.extractors.{name}"
        if name == OWN:
            raise UsageError(f"{where}: this name is the evaluated model's own CLIP")
        config_lib.check_keys({kind: None}, kinds(), "config.extractors")
        extractors[name] = config_lib.build(kinds()[kind], options, where)
    return extractors


def layers_asked(
    metrics: Mapping[str, Any], extractors: Mapping[str, ExtractorOptions]
) -> dict[str, list[str]]:
    """{extractor: [layers]} that the options of metrics name, "" for its own default.

    Args:
      metrics: {label: Metric}.
      extractors: from `read_options`.

    Raises:
      UsageError: a metric names an extractor that config.extractors lacks.
    """
    asked: dict[str, set[str]] = {}
    for label, metric in metrics.items():
        if "features" in metric.options:
            name, _, layer = metric.options["features"].partition("/")
            if name != OWN and name not in extractors:
                raise UsageError(
                    f"config.metrics.{label}: features {name!r}: expected {OWN!r} or "
                    "one of config.extractors "
                    f"({', '.join(sorted(extractors)) or 'which is empty'})"
                )
            asked.setdefault(name, set()).add(layer)
    return {name: sorted(layers) for name, layers in asked.items()}


def load(
    extractors: Mapping[str, ExtractorOptions], asked: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """{name: extractor} of those that are asked for; nothing else is loaded.

    Args:
      extractors: from `read_options`.
      asked: from `layers_asked`.
    """
    return {name: extractors[name].load(asked[name]) for name in asked.keys() - {OWN}}


def refuse_layers(layers: Sequence[str], network: str) -> None:
    """Raises UsageError where a layer is asked of a network that has but one."""
    if any(layers):
        raise UsageError(f"{network} has no layers to choose: {layers[-1]!r}")
