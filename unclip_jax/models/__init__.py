"""Flax Linen modules. `build` makes one from the kind and fields of a config."""

import jax.numpy as jnp

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.models.ar_prior import AutoregressivePrior
from unclip_jax.models.autoencoder import Autoencoder
from unclip_jax.models.clip import CLIP
from unclip_jax.models.dalle2_prior import Dalle2Prior
from unclip_jax.models.decoder import BACKBONES
from unclip_jax.models.embedding_prior import EmbeddingPrior
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.models.stable_decoder import StableDecoder
from unclip_jax.models.upsampler import Upsampler

KINDS = {
    "clip": CLIP,
    "prior": DiffusionPrior,
    "ar_prior": AutoregressivePrior,
    # by config.model.backbone; without one, as DEFAULT_BACKBONES says
    "decoder": {**BACKBONES, "stable_diffusion": StableDecoder},
    "upsampler": Upsampler,
    "autoencoder": Autoencoder,
    "embedding_prior": {"transformer": EmbeddingPrior, "dalle2_pytorch": Dalle2Prior},
    "embedding_regression": EmbeddingPrior,  # in a single pass
}
DEFAULT_BACKBONES = {"decoder": "unet", "embedding_prior": "transformer"}


def module_of(kind: str, backbone: str | None = None, where: str = "config.model"):
    """The Linen module of KINDS[kind].

    Raises:
      UsageError: unknown kind or backbone.
    """
    if kind not in KINDS:
        raise UsageError(f"model {kind!r}: expected one of {sorted(KINDS)}")
    module = KINDS[kind]
    if not isinstance(module, dict):
        return module
    backbone = backbone or DEFAULT_BACKBONES[kind]
    if backbone not in module:
        raise UsageError(
            f"{where}.backbone {backbone!r}: expected one of {', '.join(module)}"
        )
    return module[backbone]


def build(kind: str, fields, dtype=jnp.float32, where: str = "config.model"):
    """The module `kind`, one of KINDS, with the given fields.

    Raises:
      UsageError: unknown kind, or a field the module does not have or lacks.
    """
    fields, backbone = {**dict(fields), "dtype": dtype}, None
    if isinstance(KINDS.get(kind), dict):
        backbone = fields.pop("backbone", None)
    return config_lib.build(module_of(kind, backbone, where), fields, where)
