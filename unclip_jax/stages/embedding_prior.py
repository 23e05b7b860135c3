"""Stage embedding_prior: a diffusion prior of any embedding, from any conditions.

The paper's prior (section 2.2; stage "prior") with other things in the caption's place,
see models/embedding_prior.py.
"""

import dataclasses
from typing import Any

import jax

from unclip_jax import config as config_lib
from unclip_jax.diffusion import samplers, schedule
from unclip_jax.stages import embedding
from unclip_jax.stages.diffusion import DiffusionConfig, DiffusionStage
from unclip_jax.stages.embedding import flat

EMBED_STEPS = 16  # of sampling for evaluators


@dataclasses.dataclass(frozen=True)
class Options(embedding.ConditionOptions):
    """config.stage_options of this stage."""


@dataclasses.dataclass(frozen=True)
class Diffusion(DiffusionConfig):
    """config.diffusion of this stage."""

    prediction: str = "x0"
    clip: float | None = None  # bound on |x0| in sampling; None: no bound
    guidance: float | None = None  # of sampling, by default
    min_snr_gamma: float | None = None  # bound on the weight of x0's error


@dataclasses.dataclass(frozen=True)
class Stage(DiffusionStage):
    """Trains the prior on aligned arrays."""

    task: embedding.EmbeddingTask
    diffusion: Diffusion

    num_input_keys = 1

    @classmethod
    def from_config(cls, config, spec):
        """Fits the stage to the data; UsageError where it does not."""
        options = config_lib.build(
            Options, config.stage_options, "config.stage_options"
        )
        task = embedding.EmbeddingTask.from_config(config, spec, options, False)
        return cls(task.model, Diffusion.from_config(config), task)

    @property
    def batch_spec(self) -> dict[str, Any]:
        """{name: (shape, dtype)} of one example."""
        return self.task.batch_spec

    def init(self, rng):
        """Fresh parameters, float32, with what the data decides."""
        return self.task.init(rng)

    def x_0(self, params, batch):
        """What is to be denoised, float32."""
        return self.task.x_0(params, batch)

    def training_inputs(self, batch, keys):
        """Drops conditions from some rows; draws one of repeated measurements."""
        return self.task.inputs(batch, *keys)

    def metrics(self, params, batch, losses, x_0):
        """The losses and how near the predicted embeddings come to the true ones."""
        return {**losses, **self.task.cosines(params, batch, x_0)}

    def embed(self, params, rng, batch):
        """{"predicted", "redrawn", "true"}, (B, D) each; tokens one after the other.

        Two draws without guidance, by DDIM.
        """
        noise_schedule = self.diffusion.noise_schedule
        true = batch[self.task.target]
        inputs = self.task.inputs(batch)

        def model(x_t, t):
            return self.model.apply({"params": params}, x_t, t, *inputs)

        denoise = self.denoiser(model, self.diffusion.clip)
        count = min(EMBED_STEPS, noise_schedule.num_steps)
        steps = schedule.strided_timesteps(noise_schedule.num_steps, count)

        def draw(key):
            keys = jax.random.split(key, len(true))
            x_T = samplers.normal(keys, true.shape[1:])
            z = samplers.ddim(denoise, noise_schedule, x_T, steps, keys)
            return flat(self.task.denormalize(params, z))

        predicted, redrawn = jax.lax.map(draw, jax.random.split(rng))
        return {"predicted": predicted, "redrawn": redrawn, "true": flat(true)}

    def export(self):
        """{"part", "config"}: what rebuilds the model for sampling."""
        return self.task.export(
            "embedding_prior", diffusion=dataclasses.asdict(self.diffusion)
        )
