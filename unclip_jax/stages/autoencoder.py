"""Stage autoencoder: image -> latents -> the same image, for decoders of latents.

Latent diffusion's variational autoencoder (Rombach et al. 2022, section 3.1) without
its networks of perception: the absolute error of the pixels, and the divergence of the
latents' Gaussians from the standard normal. Neither a perceptual loss nor an adversary
is trained, so details are smoother than theirs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax import config as config_lib
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.diffusion import process
from unclip_jax.errors import UsageError
from unclip_jax.models.autoencoder import Autoencoder


@dataclasses.dataclass(frozen=True)
class Options:
    """config.stage_options of this stage."""

    # of the divergence, nats per number of the latents, beside the mean absolute error
    # of pixels in [-1, 1]
    kl_weight: float = 1e-3

    def __post_init__(self):
        if self.kl_weight < 0:
            raise UsageError(
                "config.stage_options.kl_weight must be at least 0, got "
                f"{self.kl_weight}"
            )


@dataclasses.dataclass(frozen=True)
class Stage:
    """Trains an autoencoder; captions and embeddings are not looked at."""

    model: Autoencoder
    fields: dict[str, Any]
    options: Options
    batch_spec: dict[str, Any]

    @classmethod
    def from_config(cls, config: stages.StageConfig, spec: DataSpec):
        """Fits the stage to the data; UsageError where it does not."""
        if config.diffusion:
            raise UsageError("config.diffusion: the stage 'autoencoder' takes none")
        fields = stages.model_fields(config, spec, ("image_size",))
        model = models.build("autoencoder", fields, stages.compute_dtype(config))
        if model.num_codes:
            raise UsageError(
                "config.model.num_codes: the stage 'autoencoder' trains variational "
                "ones; leave it out"
            )
        side = model.image_size
        if side % model.factor:
            raise UsageError(
                f"config.model.channel_mult divides sides by {model.factor}, which "
                f"images of {side} pixels are no multiple of"
            )
        return cls(
            model=model,
            fields=fields,
            options=config_lib.build(
                Options, config.stage_options, "config.stage_options"
            ),
            batch_spec={"image": ((side, side, 3), "uint8")},
        )

    def init(self, rng):
        """Fresh parameters, float32."""
        side = self.model.factor
        return self.model.init(rng, jnp.zeros((1, side, side, 3)))["params"]

    def loss(self, params, rng, batch):
        """Computes the error of images decoded from a draw of their latents, and KL.

        `latent_std`, of the means over the batch, is what diffusion sees: where it is
        not about 1, its inverse is the model's `latent_scale`.
        """
        images = process.from_uint8(batch["image"])
        bound = self.model.bind({"params": params})
        mean, std = bound.encode_moments(images)  # scaled
        assert std is not None
        noise = jax.random.normal(rng, mean.shape)
        error = jnp.abs(bound.decode(mean + std * noise) - images).mean()
        unit_mean, unit_std = (a / self.model.latent_scale for a in (mean, std))
        kl = 0.5 * (unit_mean**2 + unit_std**2 - 1 - 2 * jnp.log(unit_std)).mean()
        metrics = {"l1": error, "kl": kl, "latent_std": mean.std()}
        return error + self.options.kl_weight * kl, metrics

    def embed(self, params, rng, batch):
        """Errors of images decoded from the mean of their latents, as 8-bit ones.

        Returns:
          {"absolute_error", "squared_error"}: means over an image in [-1, 1], (B, 1).
        """
        pairs = self.preview(params, rng, batch).reshape(
            -1, 2, *batch["image"].shape[1:]
        )
        true, decoded = (process.from_uint8(pairs[:, i]) for i in (0, 1))
        error = (decoded - true).reshape(len(true), -1)
        return {
            "absolute_error": jnp.abs(error).mean(1, keepdims=True),
            "squared_error": jnp.square(error).mean(1, keepdims=True),
        }

    def preview(self, params, rng, batch):
        """Pairs of (true image, image decoded from the mean of its latents)."""
        del rng
        images = batch["image"]
        decoded = self.model.apply({"params": params}, process.from_uint8(images))
        assert isinstance(decoded, jax.Array)
        pairs = jnp.stack([images, process.to_uint8(decoded)], axis=1)
        return pairs.reshape(-1, *images.shape[1:])

    def export(self):
        """{"part", "config"}: what rebuilds the model."""
        return {"part": "autoencoder", "config": {"model": self.fields}}
