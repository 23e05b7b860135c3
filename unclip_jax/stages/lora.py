"""Training with adapters: a stage whose parameters are frozen, but for additions."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from unclip_jax import stages
from unclip_jax.errors import UsageError
from unclip_jax.models import lora

# What the data decides: it is saved with the adapters, since the folder that training
# started from may not have it.
OF_DATA = (*stages.CONSTANTS, "null_clip_image")
ADAPTED = ("decoder", "prior")  # stages
ATTENTION = r"/(context_)?(q|k|v|out)/kernel$"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation of what config.init_from has, see models.lora."""

    rank: int = 0  # 0: all parameters are trained
    alpha: float | None = None  # products are added alpha / rank times; None: once
    # regular expression, found in the paths of the kernels that are adapted: the
    # attention's
    targets: str = ATTENTION

    def __post_init__(self):
        if self.rank < 0:
            raise UsageError(f"config.lora.rank must be at least 0, got {self.rank}")

    @property
    def scale(self) -> float:
        """What products are multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class LoraStage:
    """A stage of which adapters are trained; all else is that of the stage.

    `loss`, `preview` and `embed` take, in place of parameters, what `state.joined`
    makes: {"frozen", "trained"}.
    """

    def __init__(self, stage, config: LoraConfig):
        self._stage, self._config = stage, config

    def __getattr__(self, name):
        """That of the stage, on parameters with the adapters merged."""
        value = getattr(self._stage, name)
        if name not in ("loss", "preview", "embed"):
            return value
        return lambda params, *rest: value(self.merge(**params), *rest)

    def init_trained(self, rng, params: Mapping[str, Any]) -> dict[str, Any]:
        """What is trained beside frozen `params`: adapters, which change nothing yet.

        And copies of what the data decides, which no gradient reaches.
        """
        adapters = lora.init_adapters(
            rng, params, self._config.rank, self._config.targets
        )
        of_data = {name: params[name] for name in OF_DATA if name in params}
        return {"adapters": adapters, "of_data": of_data}

    def merge(self, frozen, trained) -> dict[str, Any]:
        """The stage's parameters."""
        params = {**frozen, **jax.lax.stop_gradient(trained["of_data"])}
        return lora.merge_adapters(params, trained["adapters"], self._config.scale)
