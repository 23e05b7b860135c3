"""The config of a training run: its keys, their defaults, and what must fit."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

from unclip_jax import config as config_lib
from unclip_jax import stages
from unclip_jax.data.degradations import Degradation
from unclip_jax.data.sources import source_defaults
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.evaluators import EVALUATORS, Options
from unclip_jax.stages.lora import ADAPTED, LoraConfig
from unclip_jax.training.optimizer import OptimizerConfig
from unclip_jax.training.power_ema import exponent
from unclip_jax.training.watchdog import WatchdogOptions
from unclip_jax.training.writers import WandbOptions


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved."""

    every: int = 1000  # steps
    keep: int = 2  # newest ones
    keep_every: int = 0  # steps: multiples are kept beside them; 0: none


@dataclasses.dataclass(frozen=True)
class PreviewConfig:
    """When images are drawn."""

    every: int = 0  # steps; 0: never
    count: int = 16  # examples, the first of the data


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis, -1 for what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(stages.StageConfig):
    """What `python -m unclip_jax.train` reads from a config file."""

    steps: int
    batch_size: int  # examples per step, over all devices
    optimizer: OptimizerConfig
    seed: int = 0  # of the parameters, of the order of the data and of all noise
    grad_accum: int = 1  # micro-batches that a step is computed in
    ema_decay: float = 0.9999
    # relative standard deviations of further averages, such as (0.05, 0.1), of which
    # `export --ema_std` makes any other; see power_ema.py
    ema_profiles: tuple[float, ...] = ()
    init_from: str = ""  # folder of the parameters to start from
    # folder of the frozen autoencoder whose latents a decoder learns: an export's,
    # diffusers' (kandinsky-2-2-decoder, ...) or a run of stage autoencoder. Records
    # with latents need it for previews alone
    autoencoder: str = ""
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    sharding_rules: tuple = ()  # (regex, axes), before the automatic ones
    log_every: int = 50  # steps
    checkpoint: CheckpointConfig = CheckpointConfig()
    preview: PreviewConfig = PreviewConfig()
    # name -> options, see evaluators.py
    evaluators: dict[str, Any] = dataclasses.field(default_factory=dict)
    # steps in a row without a finite loss that end a run; log_every by default
    max_skipped: int | None = None
    wandb: dict[str, Any] = dataclasses.field(default_factory=dict)  # see writers.py
    watchdog: WatchdogOptions = WatchdogOptions()

    def __post_init__(self):
        for key in ("steps", "batch_size", "grad_accum", "log_every", "max_skipped"):
            value = getattr(self, key)
            if key == "max_skipped" and value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"config.{key} must be at least 1, got {value!r}")
        for name, least in (
            ("checkpoint.every", 1),
            ("checkpoint.keep", 1),
            ("checkpoint.keep_every", 0),
            ("preview.every", 0),
            ("preview.count", 0),
        ):
            if (value := operator.attrgetter(name)(self)) < least:
                raise UsageError(f"config.{name} must be at least {least}, got {value}")
        every, kept = self.checkpoint.every, self.checkpoint.keep_every
        if kept % every:
            raise UsageError(
                f"config.checkpoint.keep_every {kept}: of the checkpoints of every "
                f"{every} steps (config.checkpoint.every) only multiples can be kept"
            )
        if not 0 <= self.ema_decay < 1:
            raise UsageError(
                f"config.ema_decay must be in [0, 1), got {self.ema_decay}"
            )
        for std in self.ema_profiles:
            exponent(std)
        if self.lora.rank and self.stage not in ADAPTED:
            raise UsageError(
                f"config.lora.rank: stage {self.stage!r} has no adapters, only "
                f"{' and '.join(ADAPTED)} do"
            )
        if self.lora.rank and not self.init_from:
            raise UsageError(
                "config.lora.rank: adapters need something to adapt; set "
                "config.init_from to an export or a folder of diffusers"
            )
        self.evaluator_options()

    def evaluator_options(self) -> dict[str, Options]:
        """{name: its Options} of the evaluators that are on.

        Raises UsageError for an unknown evaluator or option, or one that cannot be.
        """
        config_lib.check_keys(self.evaluators, EVALUATORS, "config.evaluators")
        chosen = {}
        for name, values in self.evaluators.items():
            where = f"config.evaluators.{name}"
            options = config_lib.build(EVALUATORS[name].options, values, where)
            if options.every < 1 or options.count < 0 or options.count == 1:
                raise UsageError(
                    f"{where}: every must be at least 1 and count at least 2 (or 0: "
                    f"never), got {options.every} and {options.count}"
                )
            if options.count:
                chosen[name] = options
        return chosen


def read_config(config: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig of a config file's values; defaults for what they lack.

    Raises:
      UsageError: anything unknown or impossible, with the nearest valid name.
    """
    return config_lib.build(TrainConfig, config, "config")


def config_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of all keys, in the form of config.defaults.

    Those of `data`, `model`, `diffusion` and `stage_options` are of the stage and the
    source that `config` names.
    """
    data = source_defaults(config_lib.section(config, "data"))
    options = {name: e.options for name, e in EVALUATORS.items()}
    return {
        **config_lib.defaults(TrainConfig),
        **stages.stage_defaults(config),
        "data": {**data, "degradation": config_lib.defaults(Degradation)},
        "evaluators": {name: config_lib.defaults(o) for name, o in options.items()},
        "wandb": config_lib.defaults(WandbOptions),
    }
