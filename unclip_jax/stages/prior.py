"""Stage prior: the diffusion prior, mean squared error on x0 (paper, section 2.2).

With model.caption="clip_states" the records give the frozen CLIP's text states too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax import config as config_lib
from unclip_jax import models, stages
from unclip_jax.diffusion import process, samplers, schedule
from unclip_jax.models.clip_caption import with_empty_caption

EMBED_STEPS = 16  # of sampling for evaluators: numbers to compare, not pictures


@dataclasses.dataclass(frozen=True)
class Options:
    """config.stage_options of this stage."""

    drop_text: float = 0.1  # rows trained without caption and text embedding
    embedding: str = "standardize"  # see stages.with_embedding_space


@dataclasses.dataclass(frozen=True)
class Diffusion(stages.Diffusion):
    """config.diffusion of this stage."""

    prediction: str = "x0"
    clip: float | None = None  # bound on |x0| in sampling; None: by the convention
    guidance: float | None = None  # of sampling, by default


@dataclasses.dataclass(frozen=True)
class Stage:
    """Trains the prior on records of CLIP embeddings and captions."""

    model: models.DiffusionPrior
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
        wanted = ["embed_dim", "vocab_size", "context_length", "eot_id"]
        on_states = config.model.get("caption") == "clip_states"
        if on_states:
            wanted.append("text_width")
        fields = stages.model_fields(config, data_info, wanted)
        fields["unit_norm"] = options.embedding in stages.UNIT_SCALES
        length, width = fields["context_length"], fields["embed_dim"]
        batch_spec = {
            "tokens": ((length,), "int32"),
            "clip_image": ((width,), "float32"),
            "clip_text": ((width,), "float32"),
        }
        if on_states:
            batch_spec["text_states"] = ((length, fields["text_width"]), "float16")
        return cls(
            model=models.build("prior", fields, stages.compute_dtype(config)),
            fields=fields,
            diffusion=stages.diffusion_options(Diffusion, config),
            options=options,
            data_info=data_info,
            batch_spec=batch_spec,
        )

    def init(self, rng):
        batch = {k: jnp.zeros((1, *s), d) for k, (s, d) in self.batch_spec.items()}
        x, t, drop = batch["clip_image"], jnp.zeros(1, int), jnp.zeros(1, bool)
        states = batch.get("text_states")
        inputs = x, t, batch["tokens"], batch["clip_text"], drop, states
        params = self.model.init(rng, *inputs)["params"]
        if states is not None:
            info = self.data_info
            empty = info["empty_text_states"], info["empty_clip_text"]
            params = with_empty_caption(params, *map(jnp.asarray, empty))
        return stages.with_embedding_space(
            params, self.options.embedding, self.data_info
        )

    def loss(self, params, rng, batch, step):
        """Mean squared error between the predicted and the true embedding."""
        del step
        variables = {"params": params}
        rng_t, rng_noise, rng_drop, rng_dropout = jax.random.split(rng, 4)
        raw = batch["clip_image"]
        b = raw.shape[0]
        sched = schedule.make_schedule(
            self.diffusion.schedule, self.diffusion.num_steps
        )
        z = self.model.apply(variables, raw, method="normalize")
        t = jax.random.randint(rng_t, (b,), 0, sched.num_steps)
        noise = jax.random.normal(rng_noise, z.shape)
        x_t = process.q_sample(sched, z, t, noise)
        output = self.model.apply(
            variables,
            x_t,
            t,
            batch["tokens"],
            batch["clip_text"],
            stages.bernoulli(rng_drop, self.options.drop_text, b),
            batch.get("text_states"),
            deterministic=False,
            rngs={"dropout": rng_dropout},
        )
        kind = self.diffusion.prediction
        losses = process.training_losses(sched, kind, z, x_t, t, noise, output)
        x0 = process.interpret(sched, kind, x_t, t, output, None).x0
        predicted = self.model.apply(variables, x0, method="denormalize")
        return losses["mse"].mean(), {
            "cosine": stages.cosine(predicted, raw).mean(),
            "cosine_to_a_random_one": stages.cosine(
                predicted, jnp.roll(raw, 1, 0)
            ).mean(),
        }

    def embed(self, params, rng, batch):
        """{"predicted", "true", "text"}, (B, D) each: drawn without guidance, by DDIM.

        No bound on x0 unless the config has one.
        """
        variables = {"params": params}
        sched = schedule.make_schedule(
            self.diffusion.schedule, self.diffusion.num_steps
        )
        true, text = batch["clip_image"], batch["clip_text"]
        keep = jnp.zeros(true.shape[:1], bool)  # drops no caption

        def predict(z, t):
            output = self.model.apply(
                variables, z, t, batch["tokens"], text, keep, batch.get("text_states")
            )
            kind, bound = self.diffusion.prediction, self.diffusion.clip
            return process.interpret(sched, kind, z, t, output, bound)

        keys = jax.random.split(rng, true.shape[0])
        steps = schedule.strided_timesteps(sched.num_steps, EMBED_STEPS)
        z = samplers.ddim(
            predict, sched, samplers.normal(keys, true.shape[1:]), steps, keys
        )
        predicted = self.model.apply(variables, z, method="denormalize")
        return {"predicted": predicted, "true": true, "text": text}

    def preview(self, params, rng, batch):
        """The prior draws embeddings, not pictures."""
        del params, rng, batch

    def export(self):
        diffusion = dataclasses.asdict(self.diffusion)
        return {
            "part": "prior",
            "config": {
                "model": self.fields,
                "diffusion": diffusion,
                "embedding": self.options.embedding,
            },
        }
