"""The config of an embedding: its keys, their defaults, and what must fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unclip_jax import config as config_lib
from unclip_jax.data.sources import make_source, source_defaults
from unclip_jax.errors import UsageError

IMAGE_FORMATS = ("png", "jpeg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What `python -m unclip_jax.embed` reads from a config file."""

    # folder of a run of stage clip, of a native export, or of a public CLIP
    # (transformers' CLIPModel, OpenCLIP, diffusers' unCLIP)
    clip: str
    data: dict[str, Any]  # the source and its options, as in a training config
    # name -> options that replace data's; records go to workdir/name
    splits: dict[str, dict[str, Any]]
    # side of the images in the records: CLIP sees those that the source gives
    # (data.image_size), a decoder may train on smaller ones; 0: the source's
    image_size: int = 0
    batch_size: int = 256  # examples per step, over all devices of a process
    shard_size: int = 10_000  # examples per file; what an interrupted run loses at most
    image_format: str = "png"  # or "jpeg" (quality 95, 4:4:4)
    compute_dtype: str = "float32"  # or "bfloat16"
    # whether to keep CLIP's states of every token, for a prior or decoder with
    # model.caption="clip_states"
    text_states: bool = False
    # folder of the autoencoder whose latents of the images are kept, too: an export's,
    # diffusers' (kandinsky-2-2-decoder, ...) or a run of stage autoencoder; "": none
    autoencoder: str = ""
    # whether to keep their standard deviations: training then draws from the Gaussians
    latent_std: bool = False
    # folder of hints, such as depth maps, for a decoder with model.extra="hint": an
    # image file per example, of its key's name; "": none
    hints: str = ""
    # cosine of image and caption below which a caption is left out, and an example
    # without another; -1 leaves out none
    min_similarity: float = -1.0
    # embeddings in float16 and tokens without padding: half the bytes
    compact: bool = False

    def __post_init__(self):
        if self.image_format not in IMAGE_FORMATS:
            raise UsageError(
                f"config.image_format {self.image_format!r}: expected one of "
                f"{', '.join(IMAGE_FORMATS)}"
            )
        for name, least in (("shard_size", 1), ("batch_size", 1), ("image_size", 0)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"config.{name} must be at least {least}, got {getattr(self, name)}"
                )
        if self.latent_std and not self.autoencoder:
            raise UsageError(
                "config.latent_std: there are no latents without config.autoencoder"
            )
        if not self.splits:
            raise UsageError("config.splits is empty: name at least one, e.g. train")

    def open_source(self, split: str):
        """Opens the source of one of `splits`."""
        return make_source({**self.data, **self.splits[split]})


def read_config(config: Mapping[str, Any]) -> EmbedConfig:
    """An EmbedConfig of a config file's values; defaults for what they lack.

    Raises:
      UsageError: anything unknown or impossible, with the nearest valid name.
    """
    return config_lib.build(EmbedConfig, config, "config")


def config_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of all keys, in the form of config.defaults."""
    data, splits = config.get("data") or {}, config.get("splits") or {}
    return {
        **config_lib.defaults(EmbedConfig),
        "data": source_defaults(data),
        "splits": {name: source_defaults(data) for name in splits},
    }
