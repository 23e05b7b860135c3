"""The keys of a training config that are the loop's own."""

import dataclasses

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.training import evaluators
from unclip_jax.training.watchdog import WatchdogOptions

KEYS = (
    "stage",
    "seed",
    "steps",
    "batch_size",
    "grad_accum",
    "compute_dtype",
    "data",
    "model",
    "diffusion",
    "stage_options",
    "optimizer",
    "ema_decay",
    "mesh",
    "sharding_rules",
    "log_every",
    "checkpoint",
    "preview",
)
OPTIONAL = (
    "init_from",  # folder of the parameters to start from
    "evaluators",  # see training/evaluators.py
    "max_skipped",  # steps in a row without a finite loss; log_every by default
    "wandb",  # see training/writers.py
    "watchdog",  # see training/watchdog.py
)


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """config.checkpoint."""

    every: int  # steps
    keep: int = 2  # newest ones


@dataclasses.dataclass(frozen=True)
class PreviewOptions:
    """config.preview."""

    every: int = 0  # steps; 0: never
    count: int = 16  # examples, the first of the data


@dataclasses.dataclass(frozen=True)
class MeshOptions:
    """config.mesh: devices along each axis, -1 for what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def check_config(config) -> None:
    """Refuses what the loop does not know or cannot use, before anything is made."""
    config_lib.check_keys(config, (*KEYS, *OPTIONAL), "config")
    evaluators.check(config)
    missing = [key for key in KEYS if key not in config]
    if missing:
        raise UsageError(f"config lacks {', '.join(map(repr, missing))}")
    for key in ("steps", "batch_size", "grad_accum", "log_every"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise UsageError(f"config.{key} must be at least 1, got {config[key]!r}")
    config_lib.build(WatchdogOptions, config.get("watchdog", {}), "config.watchdog")
    most = config.get("max_skipped", 1)
    if not isinstance(most, int) or most < 1:
        raise UsageError(f"config.max_skipped must be at least 1, got {most!r}")
    if config.checkpoint.every < 1:
        raise UsageError(
            f"config.checkpoint.every must be at least 1, got {config.checkpoint.every}"
        )
    if not 0 <= config.ema_decay < 1:
        raise UsageError(f"config.ema_decay must be in [0, 1), got {config.ema_decay}")
