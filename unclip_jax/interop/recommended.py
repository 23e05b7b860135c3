"""What a part of an export recommends for its sampling: `config.diffusion` holds it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unclip_jax.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommended:
    """How a part is best sampled; None leaves what its config says.

    A training config's `diffusion` has keys of these names. The flags of
    unclip_jax.export are read off the class, and generation.resolve takes the values
    where nothing else is asked for.
    """

    sampler: str | None = dataclasses.field(
        default=None, metadata={"help": "recommended sampler, such as ddim"}
    )
    sampling_steps: str | None = dataclasses.field(
        default=None,
        metadata={"help": "recommended steps, or a respacing such as 10,10,3,2,2"},
    )
    variance: str | None = dataclasses.field(
        default=None, metadata={"help": "recommended variance of ddpm's steps"}
    )
    guidance: float | None = dataclasses.field(
        default=None,
        metadata={"help": "recommended guidance; `tune` finds it by a sweep"},
    )
    guidance_interval: str | None = dataclasses.field(
        default=None,
        metadata={"help": "FIRST,LAST: recommended timesteps to guide, of a decoder"},
    )

    @property
    def values(self) -> dict[str, Any]:
        """Those that are given; steps in digits are a number."""
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if str(given.get("sampling_steps", "")).isdecimal():
            given["sampling_steps"] = int(given["sampling_steps"])
        if self.guidance_interval is not None:
            words = self.guidance_interval.split(",")
            if len(words) != 2 or not all(word.strip().isdecimal() for word in words):
                raise UsageError(
                    f"--guidance_interval {self.guidance_interval!r}: expected the "
                    "first and the last timestep, such as 250,999"
                )
            given["guidance_interval"] = [int(word) for word in words]
        return given

    def apply(self, config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
        """The config of a part of this kind, with what is given in its "diffusion".

        Raises UsageError for a part that has no such options.
        """
        if not self.values:
            return config
        if "diffusion" not in config:
            raise UsageError(
                f"the {kind} is not sampled by diffusion: no recommended "
                f"{' or '.join(self.values)}"
            )
        if self.guidance is not None and kind.startswith("upsampler"):
            raise UsageError("upsamplers are drawn without guidance")
        if self.guidance_interval is not None and kind != "decoder":
            raise UsageError(f"the {kind} is guided at all timesteps")
        return {**config, "diffusion": {**config["diffusion"], **self.values}}


def flags() -> dict[str, tuple[type, str]]:
    """Returns {flag: (its type, its help)}, as command_line.run takes them."""
    return {
        field.name: (
            float if field.name == "guidance" else str,
            f"{field.metadata['help']} (default the training config's)",
        )
        for field in dataclasses.fields(Recommended)
    }
