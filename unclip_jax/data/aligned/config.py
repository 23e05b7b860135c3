"""The config of `python -m unclip_jax.align`: its keys, their defaults and meaning."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayConfig:
    """An array of a file, see tables.open_table for how to name one."""

    path: str
    keys: str = ""  # a key per row; "": rows are aligned by their number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionConfig(ArrayConfig):
    """A condition; its kind is that of its numbers and axes.

    Floats (n, D) are a vector, (n, L, D) a sequence; integers (n, L) tokens, (n,) a
    class.
    """

    mask: str = ""  # true where a sequence, or a measurement, has something: (n, L)
    repeats: bool = False  # floats (n, R, D) are R measurements of one vector
    size: int = 0  # of the vocabulary, or number of classes; 0: the largest + 1
    # whether examples may lack it: keys that it does not have, and rows with NaN.
    # If not, such examples are left out
    missing: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """What `python -m unclip_jax.align` reads from a config file."""

    target: ArrayConfig  # floats (n, D), or (n, N, D) of a grid of tokens
    conditions: dict[str, dict[str, Any]]  # name -> ConditionConfig
    # name -> fraction of the examples, or of the groups; by a hash, so that more
    # examples leave the others where they are
    splits: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"train": 0.9, "validation": 0.1}
    )
    # a text per row of the target: rows of one group (subject, session, image) are
    # all in one split; "": each row by itself
    groups: str = ""
    split_names: str = ""  # a split's name per row of the target, instead of fractions
    seed: int = 0  # of the hash
    # which frozen encoder made the targets: checkpoints and exports carry it, and
    # other encoders' are refused. "": a hash of the target's file
    encoder: str = ""

    def __post_init__(self):
        if not self.conditions:
            raise UsageError("config.conditions is empty: name at least one")
        for name in self.conditions:
            if not name.isidentifier() or name == "target" or name.endswith("_mask"):
                raise UsageError(
                    f"config.conditions.{name}: choose a name of letters, digits and "
                    "underscores, other than target and NAME_mask"
                )
        self.condition_options()
        total = sum(self.splits.values())
        if not self.splits or min(self.splits.values()) <= 0 or total > 1 + 1e-9:
            raise UsageError(
                f"config.splits {self.splits}: expected fractions above 0, of a sum up "
                "to 1"
            )

    def condition_options(self) -> dict[str, ConditionConfig]:
        """{name: its ConditionConfig}."""
        return {
            name: config_lib.build(ConditionConfig, values, f"config.conditions.{name}")
            for name, values in self.conditions.items()
        }


def read_config(config: Mapping[str, Any]) -> AlignConfig:
    """An AlignConfig of a config file's values; defaults for what they lack.

    Raises:
      UsageError: anything unknown or impossible, with the nearest valid name.
    """
    return config_lib.build(AlignConfig, config, "config")


def config_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of all keys, in the form of config.defaults."""
    conditions = config.get("conditions") or {}
    return {
        **config_lib.defaults(AlignConfig),
        "conditions": {n: config_lib.defaults(ConditionConfig) for n in conditions},
    }
