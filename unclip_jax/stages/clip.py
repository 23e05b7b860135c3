"""Stage clip: symmetric InfoNCE over the global batch (Radford et al. 2021)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax

from unclip_jax import config as config_lib
from unclip_jax import models, stages


@dataclasses.dataclass(frozen=True)
class Options:
    """config.stage_options of this stage."""

    max_logit_scale: float = 100.0


@dataclasses.dataclass(frozen=True)
class Stage:
    """Trains the image and text towers of CLIP."""

    model: models.CLIP
    fields: dict[str, Any]
    options: Options
    batch_spec: dict[str, Any]

    @classmethod
    def from_config(cls, config, data_info):
        wanted = ("image_size", "vocab_size", "context_length", "eot_id")
        fields = stages.model_fields(config, data_info, wanted)
        model = models.build("clip", fields, stages.compute_dtype(config))
        side, length = fields["image_size"], fields["context_length"]
        return cls(
            model=model,
            fields=fields,
            options=config_lib.build(
                Options, config.stage_options, "config.stage_options"
            ),
            batch_spec={
                "image": ((side, side, 3), "uint8"),
                "tokens": ((length,), "int32"),
            },
        )

    def init(self, rng):
        batch = {k: jnp.zeros((1, *s), d) for k, (s, d) in self.batch_spec.items()}
        return self.model.init(rng, batch["image"], batch["tokens"])["params"]

    def loss(self, params, rng, batch, step):
        """Mean of the image-to-text and text-to-image cross entropies."""
        del rng, step
        image, text = self.model.apply(
            {"params": params}, batch["image"], batch["tokens"]
        )
        image = image / jnp.linalg.norm(image, axis=-1, keepdims=True)
        text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
        # the bound of the paper's "clipped to prevent scaling the logits by > 100"
        scale = jnp.exp(params["logit_scale"]).clip(max=self.options.max_logit_scale)
        logits = scale * image @ text.T  # (B, B)
        labels = jnp.arange(logits.shape[0])
        xent = optax.softmax_cross_entropy_with_integer_labels
        loss = 0.5 * (xent(logits, labels).mean() + xent(logits.T, labels).mean())
        return loss, {
            "image_to_text_top1": (logits.argmax(1) == labels).mean(),
            "text_to_image_top1": (logits.argmax(0) == labels).mean(),
            "logit_scale": scale,
            "cosine": jnp.diagonal(logits).mean() / scale,
        }

    def preview(self, params, rng, batch):
        """CLIP draws nothing."""
        del params, rng, batch

    def export(self):
        return {"part": "clip", "config": {"model": self.fields}}
