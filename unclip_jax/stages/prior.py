"""Stage prior: the diffusion prior, mean squared error on x0 (paper, section 2.2).

With model.caption="clip_states" the records give the frozen CLIP's text states too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax import config as config_lib
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.diffusion import samplers
from unclip_jax.stages.diffusion import DiffusionConfig, DiffusionStage

EMBED_STEPS = 16  # of sampling for evaluators: numbers to compare, not pictures


@dataclasses.dataclass(frozen=True)
class Options:
    """config.stage_options of this stage."""

    drop_text: float = 0.1  # rows trained without caption and text embedding
    embedding: str = "standardize"  # see stages.with_embedding_space


@dataclasses.dataclass(frozen=True)
class Diffusion(DiffusionConfig):
    """config.diffusion of this stage."""

    prediction: str = "x0"
    clip: float | None = None  # bound on |x0| in sampling; None: by the convention
    guidance: float | None = None  # of sampling, by default
    consistency: int | None = None  # steps, see DiffusionConfig


@dataclasses.dataclass(frozen=True)
class Stage(DiffusionStage):
    """Trains the prior on records of CLIP embeddings and captions."""

    model: models.DiffusionPrior
    fields: dict[str, Any]
    diffusion: Diffusion
    options: Options
    spec: DataSpec
    batch_spec: dict[str, Any]

    num_input_keys = 1

    @classmethod
    def from_config(cls, config: stages.StageConfig, spec: DataSpec):
        """Fits the stage to the data; UsageError where it does not."""
        options = config_lib.build(
            Options, config.stage_options, "config.stage_options"
        )
        wanted = ["embed_dim", "vocab_size", "context_length", "eot_id"]
        on_states = config.model.get("caption") == "clip_states"
        text_width = "text_width" if on_states else ""
        fields = stages.model_fields(config, spec, wanted, text_width)
        fields["unit_norm"] = options.embedding in stages.UNIT_SCALES
        length, width = fields["context_length"], fields["embed_dim"]
        batch_spec: dict[str, Any] = {
            "tokens": ((length,), "int32"),
            "clip_image": ((width,), "float32"),
            "clip_text": ((width,), "float32"),
        }
        if on_states:
            batch_spec["text_states"] = ((length, fields["text_width"]), "float16")
        return cls(
            model=models.build("prior", fields, stages.compute_dtype(config)),
            fields=fields,
            diffusion=Diffusion.from_config(config),
            options=options,
            spec=spec,
            batch_spec=batch_spec,
        )

    def init(self, rng):
        """Fresh parameters, float32, with what the data decides."""
        batch, no = stages.example_batch(self.batch_spec), jnp.zeros(1, bool)
        t = jnp.zeros(1, int)
        inputs = batch["clip_image"], t, *self.inputs(batch, no)
        params = self.model.init(rng, *inputs)["params"]
        return stages.with_constants(params, self.options.embedding, self.spec)

    def x_0(self, params, batch):
        """What is to be denoised, float32."""
        variables = {"params": params}
        return self.model.apply(variables, batch["clip_image"], method="normalize")

    def inputs(self, batch, drop):
        """The model's after (x_t, t); rows of `drop` (B,) lose caption and text."""
        return batch["tokens"], batch["clip_text"], drop, batch.get("text_states")

    def training_inputs(self, batch, keys):
        """Drops caption and text embedding from some rows."""
        (rng,), rows = keys, len(batch["tokens"])
        return self.inputs(batch, stages.bernoulli(rng, self.options.drop_text, rows))

    def metrics(self, params, batch, losses, x_0):
        """How near the predicted embeddings come to the true ones."""
        del losses
        true, variables = batch["clip_image"], {"params": params}
        predicted = self.model.apply(variables, x_0, method="denormalize")
        other = jnp.roll(true, 1, 0)
        return {
            "cosine": stages.cosine(predicted, true).mean(),
            "cosine_to_a_random_one": stages.cosine(predicted, other).mean(),
        }

    def embed(self, params, rng, batch):
        """{"predicted", "true", "text"}, (B, D) each: drawn without guidance, by DDIM.

        No bound on x0 unless the config has one.
        """
        variables = {"params": params}
        noise_schedule = self.diffusion.noise_schedule
        true, text = batch["clip_image"], batch["clip_text"]
        inputs = self.inputs(batch, jnp.zeros(len(true), bool))

        def model(x_t, t):
            return self.model.apply(variables, x_t, t, *inputs)

        keys = jax.random.split(rng, len(true))
        x_T = samplers.normal(keys, true.shape[1:])
        sample, steps = self.diffusion.preview_sampler(EMBED_STEPS)
        denoise = self.denoiser(model, self.diffusion.clip)
        z = sample(denoise, noise_schedule, x_T, steps, keys)
        predicted = self.model.apply(variables, z, method="denormalize")
        return {"predicted": predicted, "true": true, "text": text}

    def export(self):
        """{"part", "config"}: what rebuilds the model for sampling."""
        diffusion = dataclasses.asdict(self.diffusion)
        return {
            "part": "prior",
            "config": {
                "model": self.fields,
                "diffusion": diffusion,
                "embedding": self.options.embedding,
            },
        }
