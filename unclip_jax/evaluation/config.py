"""The config of an evaluation: its keys, what may be left out, and what must fit."""

import copy

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.evaluation import inputs, metrics, sweep
from unclip_jax.evaluation.generate import GENERATION_KEYS
from unclip_jax.evaluation.image_sets import CROPS

KEYS = ("reference", "metrics")
# Keys that may be left out, and what they then are.
OPTIONAL = {
    "model": "",  # folder of an export
    "data": {"source": ""},  # none: no captions
    "count": 0,  # with --images it is that of the images
    "select": "first",
    "seed": 0,
    "generation": {"batch_size": 32},
    "report": {"pictures": 48, "columns": 6},
    "extractors": {},  # name -> options, see extractors.py
    # of real images, see image_sets.CROPS; generated: and of those of --images
    "crop": {"name": "", "size": 0, "generated": False},
    "caption_filter": "",  # "package.module:function" of a caption: keep it?
    "sweep": {},  # see sweep.py
}


def complete(config):
    """A copy of the config with what may be left out filled in."""
    plain = config_lib.to_plain(config)
    return type(config)({**copy.deepcopy(OPTIONAL), **plain})


def check_config(config):
    """Checks every key and option; returns {label: Metric}.

    Raises:
      UsageError: anything unknown or impossible, with the nearest valid name.
    """
    config = complete(config)
    config_lib.check_keys(config, (*KEYS, *OPTIONAL), "config")
    if missing := [key for key in KEYS if key not in config]:
        raise UsageError(f"config lacks {', '.join(missing)}")
    allowed = (*GENERATION_KEYS, "batch_size")
    config_lib.check_keys(config.generation, allowed, "config.generation")
    config_lib.check_keys(config.reference, inputs.REFERENCE_KEYS, "config.reference")
    config_lib.check_keys(config.report, ("pictures", "columns"), "config.report")
    config_lib.check_keys(config.crop, OPTIONAL["crop"], "config.crop")
    config_lib.check_keys({config.crop.name: 0}, CROPS, "config.crop.name")
    if config.select not in inputs.SELECT:
        raise UsageError(
            f"config.select = {config.select!r}: expected one of {inputs.SELECT}"
        )
    if config.generation.batch_size < 1:
        raise UsageError(
            f"config.generation.batch_size = {config.generation.batch_size}: "
            "expected at least 1"
        )
    inputs.caption_filter(config.caption_filter)
    count = min(config.count, sweep.check(config))
    chosen = {}
    for label, options in config.metrics.items():
        metric = metrics.make_metric(label, config_lib.to_plain(options or {}))
        if 0 < count < metric.minimum:  # 0: of images made elsewhere
            raise UsageError(
                f"config.count = {count}, but metric {label!r} with {metric.options} "
                f"needs at least {metric.minimum} images"
            )
        chosen[label] = metric
    if not chosen:
        raise UsageError(
            f"config.metrics is empty; known metrics: {', '.join(metrics.metrics())}"
        )
    return chosen
