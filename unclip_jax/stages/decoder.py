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
from unclip_jax.diffusion import guidance, process, samplers, schedule
from unclip_jax.models.clip_caption import with_empty_caption


@dataclasses.dataclass(frozen=True)
class Options:
    """config.stage_options of this stage."""

    drop_clip: float = 0.1  # rows trained without the CLIP image embedding
    drop_text: float = 0.5  # rows trained without the caption
    embedding: str = "standardize"  # see stages.with_embedding_space
    preview_steps: int = 25
    preview_guidance: float = 3.0


@dataclasses.dataclass(frozen=True)
class Diffusion(stages.Diffusion):
    """config.diffusion of this stage."""

    min_snr_gamma: float | None = None
    guidance: float | None = None  # of sampling, by default


@dataclasses.dataclass(frozen=True)
class Stage:
    """Trains the decoder on records of images, captions and CLIP embeddings."""

    model: models.Decoder
    fields: dict[str, Any]
    diffusion: Diffusion
    options: Options
    data_info: Any
    batch_spec: dict[str, Any]

    @classmethod
    def from_config(cls, config, data_info):
        options = config_lib.build(
            Options, config.stage_options, "config.stage_options"
        )
        wanted = ["image_size", "embed_dim", "vocab_size", "context_length", "eot_id"]
        on_states = config.model.get("caption") == "clip_states"
        if on_states:
            wanted.append("text_states_width")
            # of the data; the model's own text_width is its UNet's
            data_info = {**data_info, "text_states_width": data_info.get("text_width")}
        fields = stages.model_fields(config, data_info, wanted)
        fields["unit_norm"] = options.embedding in stages.UNIT_SCALES
        side, length, dim = (
            fields[name] for name in ("image_size", "context_length", "embed_dim")
        )
        batch_spec = {
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
            diffusion=stages.diffusion_options(Diffusion, config, model.learned_sigma),
            options=options,
            data_info=data_info,
            batch_spec=batch_spec,
        )

    def init(self, rng):
        batch = {k: jnp.zeros((1, *s), d) for k, (s, d) in self.batch_spec.items()}
        x, t, drop = batch["image"], jnp.zeros(1, int), jnp.zeros(1, bool)
        params = self.model.init(
            rng,
            x.astype(jnp.float32),
            t,
            batch["clip_image"],
            batch["tokens"],
            drop,
            drop,
            *_captions_of_clip(batch),
        )["params"]
        if "text_states" in batch:
            info = self.data_info
            empty = info["empty_text_states"], info["empty_clip_text"]
            params = with_empty_caption(params, *map(jnp.asarray, empty))
        return stages.with_embedding_space(
            params, self.options.embedding, self.data_info
        )

    def loss(self, params, rng, batch, step):
        """mse + (T / 1000) vb where the variance is learned (RESCALED_MSE)."""
        del step
        rngs = jax.random.split(rng, 5)
        x_0 = process.from_uint8(batch["image"])
        b = x_0.shape[0]
        sched = schedule.make_schedule(
            self.diffusion.schedule, self.diffusion.num_steps
        )
        t = jax.random.randint(rngs[0], (b,), 0, sched.num_steps)
        noise = jax.random.normal(rngs[1], x_0.shape)
        x_t = process.q_sample(sched, x_0, t, noise)
        output = self.model.apply(
            {"params": params},
            x_t,
            t,
            batch["clip_image"],
            batch["tokens"],
            stages.bernoulli(rngs[2], self.options.drop_clip, b),
            stages.bernoulli(rngs[3], self.options.drop_text, b),
            *_captions_of_clip(batch),
            deterministic=False,
            rngs={"dropout": rngs[4]},
        )
        losses = process.training_losses(
            sched,
            self.diffusion.prediction,
            x_0,
            x_t,
            t,
            noise,
            output,
            min_snr_gamma=self.diffusion.min_snr_gamma,
        )
        metrics = {name: value.mean() for name, value in losses.items()}
        return sum(metrics.values()), metrics

    def preview(self, params, rng, batch):
        """Pairs of (true picture, picture drawn from its embedding and caption)."""
        sched = schedule.make_schedule(
            self.diffusion.schedule, self.diffusion.num_steps
        )

        def model(x, t, cond, drop):
            clip_image, tokens, captions = cond
            inputs = x, t, clip_image, tokens, drop, drop, *captions
            return self.model.apply({"params": params}, *inputs)

        cond = batch["clip_image"], batch["tokens"], _captions_of_clip(batch)
        guided = guidance.classifier_free(model, cond, self.options.preview_guidance)

        def predict(x, t):
            kind = self.diffusion.prediction
            return process.interpret(sched, kind, x, t, guided(x, t), 1.0)

        image = batch["image"]
        keys = jax.random.split(rng, image.shape[0])
        x_T = samplers.normal(keys, image.shape[1:])
        steps = schedule.strided_timesteps(sched.num_steps, self.options.preview_steps)
        drawn = samplers.ddim(predict, sched, x_T, steps, keys)
        drawn = process.to_uint8(drawn)
        return jnp.stack([image, drawn], axis=1).reshape(-1, *image.shape[1:])

    def export(self):
        return {
            "part": "decoder",
            "config": {
                "model": self.fields,
                "diffusion": dataclasses.asdict(self.diffusion),
                "embedding": self.options.embedding,
            },
        }


def _captions_of_clip(batch):
    """(clip_text, text_states) of a batch, (None, None) where the records lack them."""
    return batch.get("clip_text"), batch.get("text_states")
