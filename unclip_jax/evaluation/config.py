"""The config of an evaluation: its keys, their defaults, and what must fit."""

import dataclasses
from typing import Any

from unclip_jax import config as config_lib
from unclip_jax.data.sources import source_defaults
from unclip_jax.errors import UsageError
from unclip_jax.evaluation import metrics
from unclip_jax.evaluation.image_sets import CROPS
from unclip_jax.generation.options import DecoderOptions, PriorOptions, defaults

# Options of UnCLIP.text2image that a config may set; None leaves the model's own.
GENERATION_KEYS = tuple(defaults(PriorOptions, DecoderOptions))
SELECT = ("first", "random")


@dataclasses.dataclass(frozen=True)
class CropConfig:
    """What is done to real images before anything else sees them."""

    name: str = ""  # one of image_sets.CROPS
    size: int = 0  # pixels
    generated: bool = False  # whether to those of --images, too


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """The real images a set is compared with: by one of the last three, or by none."""

    data: dict[str, Any] = dataclasses.field(default_factory=dict)  # differs from data
    count: int = 0  # examples of the data; -1: all
    images: str = ""  # folder or npz
    statistics: str = ""  # npz with their mu and sigma


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What the report shows."""

    pictures: int = 48  # the first of all
    columns: int = 6


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What `python -m unclip_jax.evaluate` reads from a config file."""

    metrics: dict[str, Any]  # label -> options, see metrics/__init__.py
    reference: ReferenceConfig = ReferenceConfig()
    model: str = ""  # folder of an export
    data: dict[str, Any] = dataclasses.field(default_factory=dict)  # {}: no captions
    count: int = 0  # captions; with --images there are as many as images
    select: str = "first"  # examples of the data, or "random" ones by the seed
    seed: int = 0  # of the choice and of all noise
    # batch_size, and options of UnCLIP.text2image
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)
    report: ReportConfig = ReportConfig()
    # name -> options, see features/__init__.py
    extractors: dict[str, Any] = dataclasses.field(default_factory=dict)
    crop: CropConfig = CropConfig()
    caption_filter: str = ""  # "package.module:function" of a caption: keep it?
    # option of generation -> values to try, see sweep.py
    sweep: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        keys = (*GENERATION_KEYS, "batch_size")
        config_lib.check_keys(self.generation, keys, "config.generation")
        config_lib.check_keys({self.crop.name: 0}, CROPS, "config.crop.name")
        if self.select not in SELECT:
            raise UsageError(
                f"config.select = {self.select!r}: expected one of {SELECT}"
            )
        if self.batch_size < 1:
            raise UsageError(
                f"config.generation.batch_size = {self.batch_size}: expected at least 1"
            )

    @property
    def batch_size(self) -> int:
        """Images that are generated at a time."""
        return self.generation.get("batch_size", 32)

    @property
    def options(self) -> dict[str, Any]:
        """The options of generation, without the batch size: no image depends on it."""
        return {k: v for k, v in self.generation.items() if k != "batch_size"}


def read_config(config) -> EvaluateConfig:
    """An EvaluateConfig of a config file's values; defaults for what they lack.

    Raises:
      UsageError: anything unknown or impossible, with the nearest valid name.
    """
    if isinstance(config, EvaluateConfig):
        return config
    return config_lib.build(EvaluateConfig, config, "config")


def config_defaults(config) -> dict[str, Any]:
    """The defaults of all keys, in the form of config.defaults."""
    data = source_defaults(config.get("data") or {})
    known = config_lib.defaults(EvaluateConfig)
    generation = {"batch_size": 32, **defaults(PriorOptions, DecoderOptions)}
    reference = {**known["reference"], "data": data}
    return {**known, "data": data, "generation": generation, "reference": reference}


def make_metrics(config: EvaluateConfig, count: int) -> dict[str, metrics.Metric]:
    """{label: Metric} of config.metrics.

    Args:
      config: of the evaluation.
      count: the least number of images that they will score; 0 where it is not known.

    Raises:
      UsageError: unknown metrics or options, or too few images for one.
    """
    chosen = {}
    for label, options in config.metrics.items():
        metric = chosen[label] = metrics.make_metric(label, options)
        if 0 < count < metric.minimum:
            raise UsageError(
                f"config.count = {count}, but metric {label!r} with {metric.options} "
                f"needs at least {metric.minimum} images"
            )
    if not chosen:
        raise UsageError(
            f"config.metrics is empty; known metrics: {', '.join(metrics.metrics())}"
        )
    return chosen
