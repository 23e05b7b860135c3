"""Stage decoder: CLIP embedding and caption -> picture (paper, section 2.1).

With model.caption="clip_states" the records give the frozen CLIP's text states and text
embedding too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax import config as config_lib
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.diffusion import guidance, process, samplers, schedule
from unclip_jax.models.decoder import Decoder
from unclip_jax.stages.diffusion import DiffusionConfig, DiffusionStage


@dataclasses.dataclass(frozen=True)
class Options:
    """config.stage_options of this stage."""

    drop_clip: float = 0.1  # rows trained without the CLIP image embedding
    drop_text: float = 0.5  # rows trained without the caption
    embedding: str = "standardize"  # see stages.with_embedding_space
    preview_steps: int = 25
    preview_guidance: float = 3.0


@dataclasses.dataclass(frozen=True)
class Diffusion(DiffusionConfig):
    """config.diffusion of this stage."""

    min_snr_gamma: float | None = None
    guidance: float | None = None  # of sampling, by default


@dataclasses.dataclass(frozen=True)
class Stage(DiffusionStage):
    """Trains the decoder on records of images, captions and CLIP embeddings."""

    model: Decoder
    fields: dict[str, Any]
    diffusion: Diffusion
    options: Options
    spec: DataSpec
    batch_spec: dict[str, Any]

    num_input_keys = 2

    @classmethod
    def from_config(cls, config: stages.StageConfig, spec: DataSpec):
        """Fits the stage to the data; UsageError where it does not."""
        options = config_lib.build(
            Options, config.stage_options, "config.stage_options"
        )
        wanted = ["image_size", "embed_dim", "vocab_size", "context_length", "eot_id"]
        on_states = config.model.get("caption") == "clip_states"
        # the model's own text_width is its UNet's
        text_width = "text_states_width" if on_states else ""
        fields = stages.model_fields(config, spec, wanted, text_width)
        fields["unit_norm"] = options.embedding in stages.UNIT_SCALES
        side, length, dim = (
            fields[name] for name in ("image_size", "context_length", "embed_dim")
        )
        batch_spec: dict[str, Any] = {
            "image": ((side, side, 3), "uint8"),
            "tokens": ((length,), "int32"),
            "clip_image": ((dim,), "float32"),
        }
        if on_states:
            width = fields["text_states_width"]
            batch_spec["clip_text"] = ((dim,), "float32")
            batch_spec["text_states"] = ((length, width), "float16")
        model = models.build("decoder", fields, stages.compute_dtype(config))
        return cls(
            model=model,
            fields=fields,
            diffusion=Diffusion.from_config(config, model.learned_sigma),
            options=options,
            spec=spec,
            batch_spec=batch_spec,
        )

    def init(self, rng):
        """Fresh parameters, float32, with what the data decides."""
        batch, no = stages.example_batch(self.batch_spec), jnp.zeros(1, bool)
        x, t = batch["image"].astype(jnp.float32), jnp.zeros(1, int)
        params = self.model.init(rng, x, t, *self.inputs(batch, no, no))["params"]
        return stages.with_constants(params, self.options.embedding, self.spec)

    def x_0(self, params, batch):
        """What is to be denoised, float32."""
        del params
        return process.from_uint8(batch["image"])

    def inputs(self, batch, drop_clip, drop_text):
        """The model's after (x_t, t); (B,) bool say which rows lose what."""
        return (
            batch["clip_image"],
            batch["tokens"],
            drop_clip,
            drop_text,
            batch.get("clip_text"),
            batch.get("text_states"),
        )

    def training_inputs(self, batch, keys):
        """Drops embeddings and captions, each from rows of its own."""
        rng_clip, rng_text = keys
        rows, options = len(batch["image"]), self.options
        drop_clip = stages.bernoulli(rng_clip, options.drop_clip, rows)
        drop_text = stages.bernoulli(rng_text, options.drop_text, rows)
        return self.inputs(batch, drop_clip, drop_text)

    def preview(self, params, rng, batch):
        """Pairs of (true picture, picture drawn from its embedding and caption)."""

        def model(x_t, t, condition, drop):
            inputs = self.inputs(condition, drop, drop)
            return self.model.apply({"params": params}, x_t, t, *inputs)

        image = batch["image"]
        condition = {name: rows for name, rows in batch.items() if name != "image"}
        scale = self.options.preview_guidance
        denoise = self.denoiser(guidance.classifier_free(model, condition, scale), 1.0)
        noise_schedule = self.diffusion.noise_schedule
        count = self.options.preview_steps
        steps = schedule.strided_timesteps(noise_schedule.num_steps, count)
        keys = jax.random.split(rng, len(image))
        x_T = samplers.normal(keys, image.shape[1:])
        drawn = samplers.ddim(denoise, noise_schedule, x_T, steps, keys)
        pairs = jnp.stack([image, process.to_uint8(drawn)], axis=1)
        return pairs.reshape(-1, *image.shape[1:])

    def export(self):
        """{"part", "config"}: what rebuilds the model for sampling."""
        return {
            "part": "decoder",
            "config": {
                "model": self.fields,
                "diffusion": dataclasses.asdict(self.diffusion),
                "embedding": self.options.embedding,
            },
        }
