"""Metrics: one file each, found by its name.

metrics/<name>.py has a plain function of features (numpy, float64) and below it a
subclass of Metric: its fields are the options that a config may set, and it says what
the function takes of a SampleSet. To add a metric, write such a file.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from unclip_jax import config as config_lib
from unclip_jax.evaluation.discovery import find_subclasses


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number of a metric.

    Attributes:
      text: one line for a reader who is new to it.
      better: "higher", "lower" or "" (neither: it describes).
      percent: whether 1.0 reads as 100%.
    """

    text: str
    better: str = "higher"
    percent: bool = False


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a config can ask for by name; its fields are the options.

    Attributes:
      quantities: name -> Quantity; the single quantity of a metric is named "".
      paired: whether it looks at captions; then its chance level is what mismatched
        captions score.
      statistics: whether mean and covariance are all that it takes of the reference.
      minimum: the least number of images, known before any is drawn.
    """

    quantities: ClassVar[Mapping[str, Quantity]]
    paired: ClassVar[bool] = False
    statistics: ClassVar[bool] = False

    @property
    def minimum(self) -> int:
        return 2

    @property
    def options(self) -> dict[str, Any]:
        """All options, given or default: the convention that the number depends on."""
        return dataclasses.asdict(self)

    def __call__(self, samples) -> dict[str, Any]:
        """{quantity: float, or (N,) one value per image} of a SampleSet."""
        raise NotImplementedError


@functools.cache
def metrics() -> dict[str, type[Metric]]:
    """All metrics by file name; files without one are helpers."""
    return find_subclasses(__name__, Metric)


def make_metric(label: str, options: Mapping[str, Any]) -> Metric:
    """The metric of an entry of config.metrics.

    Args:
      label: the entry's key, the name in the results.
      options: the entry's value; its "metric" names the metric when the label does
        not (so that one metric can stand twice, with different options).

    Raises:
      UsageError: unknown metric or option, with the nearest name.
    """
    options = dict(options or {})
    name = options.pop("metric", label)
    config_lib.check_keys({name: None}, metrics(), "config.metrics")
    return config_lib.build(metrics()[name], options, f"config.metrics.{label}")
