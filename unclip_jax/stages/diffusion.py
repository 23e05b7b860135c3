"""What the stages that train by denoising share: the process and the loss."""

import dataclasses
import math
import numbers
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from unclip_jax import config as config_lib
from unclip_jax.diffusion import consistency, process, samplers
from unclip_jax.diffusion.samplers.ancestral import VARIANCES
from unclip_jax.diffusion.schedule import ZERO_SNR, Schedule, make_schedule
from unclip_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The options in config.diffusion of a diffusion stage; stages add their own.

    The process, and how the trained model is best sampled: an export carries the
    sampler, steps, variance and guidance, which generation takes where nothing else is
    asked for. None leaves them to generation.options.

    Attributes:
      schedule, num_steps: of diffusion.schedule.make_schedule.
      shift: of make_schedule; None is 1.
      prediction: what the model predicts, one of diffusion.process.PREDICTIONS.
      loss_space: whose squared error is trained on, one of these too; None is the
        prediction's own. See diffusion.process.loss_weight.
      logit_normal: (mean, std) of the timesteps that training draws, as fractions of T:
        sigmoid(mean + std n), n normal (Esser et al. 2024, section 3.1). A mean above 0
        draws noisier ones. None draws them uniformly.
      sampler: a name in diffusion.samplers.SAMPLERS.
      sampling_steps: a number of steps or a respacing, see diffusion.schedule.respace.
      variance: of the steps of the sampler "ddpm", see diffusion.samplers.ancestral.
      guidance, guidance_interval, min_snr_gamma, consistency: options of some stages;
        None: 1 in sampling, at all timesteps, no weights in the loss (see
        diffusion.process.training_losses), and no consistency training. That has so
        many steps (see diffusion.consistency), and the sampler "consistency", of one
        step or a few.
    """

    schedule: str = "cosine"
    num_steps: int = 1000
    shift: float | None = None
    prediction: str = "epsilon"
    loss_space: str | None = None
    logit_normal: tuple[float, float] | None = None
    sampler: str | None = None
    sampling_steps: int | str | None = None
    variance: str | None = None
    # no fields, but of the stages that have them
    guidance = guidance_interval = min_snr_gamma = consistency = None

    def __post_init__(self):
        where = "config.diffusion"
        for name, values in (
            ("sampler", samplers.SAMPLERS),
            ("variance", VARIANCES),
            ("prediction", process.PREDICTIONS),
            ("loss_space", process.PREDICTIONS),
        ):
            value = getattr(self, name)
            if value not in (None, *values):
                raise UsageError(
                    f"{where}.{name} {value!r}: expected one of {', '.join(values)}"
                )
        if self.variance is not None and self.sampler != "ddpm":
            raise UsageError(
                f"{where}.variance {self.variance!r} is an option of sampler='ddpm', "
                f"which is {self.sampler!r}"
            )
        if self.prediction == "epsilon" and self.schedule.startswith(ZERO_SNR):
            raise UsageError(
                f"{where}.prediction 'epsilon' says nothing of x_0 where no signal is "
                f"left, at the last timestep of {self.schedule!r}: take 'v', 'x0' or "
                "'flow'"
            )
        if self.loss_space is not None and self.min_snr_gamma is not None:
            raise UsageError(
                f"{where}: loss_space {self.loss_space!r} and min_snr_gamma "
                f"{self.min_snr_gamma} both weigh the loss; give one of them"
            )
        if self.consistency is not None:
            self._check_consistency()
        if self.logit_normal is not None:
            values = self.logit_normal
            if len(values) != 2 or not (
                values[1] > 0 and all(map(math.isfinite, values))
            ):
                raise UsageError(
                    f"{where}.logit_normal {values}: expected (mean, std), std above 0"
                )
        if self.sampling_steps is not None:
            try:
                samplers.timesteps("ddim", self.noise_schedule, self.sampling_steps)
            except ValueError as error:
                raise UsageError(f"{where}.sampling_steps: {error}") from None
        guidance = self.guidance
        finite = isinstance(guidance, numbers.Real) and math.isfinite(guidance)
        if guidance is not None and not finite:
            raise UsageError(
                f"{where}.guidance must be a finite number, got {guidance!r}"
            )
        if (interval := self.guidance_interval) is not None:
            first, last = interval if len(interval) == 2 else (-1, -1)
            if not 0 <= first <= last < self.num_steps:
                raise UsageError(
                    f"{where}.guidance_interval {interval}: expected (first, last) "
                    f"timestep, 0 <= first <= last < {self.num_steps}"
                )

    def _check_consistency(self):
        where, count = "config.diffusion.consistency", self.consistency
        if not isinstance(count, int) or not 2 <= count <= self.num_steps:
            raise UsageError(
                f"{where} must be from 2 to num_steps={self.num_steps}, got {count!r}"
            )
        if self.sampler != "consistency" or not self.sampling_steps:
            raise UsageError(
                f"{where}: such a model is drawn by sampler='consistency' in few "
                f"sampling_steps, got {self.sampler!r} and {self.sampling_steps}"
            )
        if self.prediction == "epsilon":
            raise UsageError(
                f"{where}: prediction='epsilon' does not say x_0 where there is no "
                "signal; take 'x0', 'v' or 'flow'"
            )
        if self.loss_space is not None or self.min_snr_gamma is not None:
            raise UsageError(f"{where} has a loss of its own: no loss_space, no gamma")

    @classmethod
    def from_config(cls, config, learned_sigma: bool = False) -> Self:
        """Builds the options from a training config.

        Raises:
          UsageError: a bad option; a learned variance of a model without one.
        """
        options = config_lib.build(cls, config.diffusion, "config.diffusion")
        if options.variance == "learned_range" and not learned_sigma:
            raise UsageError(
                "config.diffusion.variance 'learned_range': the model does not predict "
                "its variance; only decoders and upsamplers with "
                "model.learned_sigma=True do"
            )
        if options.consistency and learned_sigma:
            raise UsageError(
                "config.diffusion.consistency trains no variance: set "
                "config.model.learned_sigma=False"
            )
        return options

    def preview_sampler(self, steps: int):
        """(sampler, its timesteps) for looking at a model that is trained.

        DDIM in so many steps, unless it is a consistency model, with its own.
        """
        name: str = "consistency" if self.consistency else "ddim"
        count = self.sampling_steps if self.consistency else steps
        timesteps = samplers.timesteps(name, self.noise_schedule, count or steps)
        return samplers.SAMPLERS[name], timesteps

    @property
    def noise_schedule(self) -> Schedule:
        """The process that the model is trained on."""
        return make_schedule(self.schedule, self.num_steps, self.shift)

    def draw_timesteps(self, rng, n: int):
        """Draws the (n,) int32 timesteps that a batch is trained at."""
        if self.logit_normal is None:
            return jax.random.randint(rng, (n,), 0, self.num_steps)
        mean, std = self.logit_normal
        fraction = jax.nn.sigmoid(mean + std * jax.random.normal(rng, (n,)))
        return jnp.minimum(fraction * self.num_steps, self.num_steps - 1).astype(int)


@dataclasses.dataclass(frozen=True)
class DiffusionStage:
    """The base of the stages whose model predicts what x_t was before its noise.

    Subclasses say what x_0 is and what the model sees besides (x_t, t).
    """

    model: Any  # a Linen module: (x_t, t, *inputs, deterministic) -> output
    diffusion: DiffusionConfig
    num_input_keys: ClassVar[int]  # random keys that `training_inputs` takes

    def x_0(self, params, batch):
        """Returns what is to be denoised, float32 (B, ..., C)."""
        raise NotImplementedError

    def training_inputs(self, batch, keys) -> tuple:
        """Returns the model's inputs after (x_t, t), some rows dropped or corrupted."""
        raise NotImplementedError

    def metrics(self, params, batch, losses, x_0):
        """Returns the scalars to log, by name.

        Args:
          params: the model's.
          batch: that of the step.
          losses: {name: scalar}, which are trained on.
          x_0: what the model takes `x_0(params, batch)` for.
        """
        del params, batch, x_0
        return losses

    def loss(self, params, rng, batch):
        """Computes the denoising loss of one noised version of each example.

        The mean squared error (DDPM, equation 14), with a learned variance plus the
        rescaled bound (IDDPM's RESCALED_MSE); or that of diffusion.consistency.
        """
        rng_t, rng_noise, *keys, rng_dropout = jax.random.split(
            rng, 3 + self.num_input_keys
        )
        noise_schedule = self.diffusion.noise_schedule
        prediction = self.diffusion.prediction
        x_0 = self.x_0(params, batch)
        t = self.diffusion.draw_timesteps(rng_t, len(x_0))
        noise = jax.random.normal(rng_noise, x_0.shape)
        x_t = process.q_sample(noise_schedule, x_0, t, noise)
        inputs = self.training_inputs(batch, keys)

        def model(x_t, t):
            return self.model.apply(
                {"params": params},
                x_t,
                t,
                *inputs,
                deterministic=False,
                rngs={"dropout": rng_dropout},
            )

        output = model(x_t, t)
        if count := self.diffusion.consistency:
            x0, losses = self._consistency(count, model, output, x_0, x_t, t, noise)
            return losses["consistency"], self.metrics(params, batch, losses, x0)
        if not getattr(self.diffusion, "train_variance", True):
            output = output[..., : x_0.shape[-1]]
        losses = process.training_losses(
            noise_schedule,
            prediction,
            x_0,
            x_t,
            t,
            noise,
            output,
            space=self.diffusion.loss_space,
            min_snr_gamma=self.diffusion.min_snr_gamma,
        )
        losses = {name: value.mean() for name, value in losses.items()}
        predicted = process.interpret(noise_schedule, prediction, x_t, t, output, None)
        return sum(losses.values()), self.metrics(params, batch, losses, predicted.x0)

    def _consistency(self, count, model, output, x_0, x_t, t, noise):
        """(the model's x0 of x_t, {"consistency": the loss})."""
        options, schedule = self.diffusion, self.diffusion.noise_schedule

        def x0_of(output, x, t):
            return process.interpret(
                schedule, options.prediction, x, t, output, None
            ).x0

        s = t - consistency.step_length(schedule.num_steps, count)
        known, s = s < 0, jnp.maximum(s, 0)
        x_s = process.q_sample(schedule, x_0, s, noise)
        goal = x0_of(model(x_s, s), x_s, s)
        goal = jnp.where(known.reshape(-1, *(1,) * (x_0.ndim - 1)), x_0, goal)
        x0, goal = x0_of(output, x_t, t), jax.lax.stop_gradient(goal)
        losses = consistency.consistency_losses(schedule, count, t, x0, goal)
        return x0, {"consistency": losses.mean()}

    def denoiser(self, model, clip):
        """Returns (x_t, t) -> Prediction, as samplers take it.

        Args:
          model: (x_t, t) -> output.
          clip: bound on |x_0|, see process.interpret.
        """
        return process.make_denoiser(
            model, self.diffusion.noise_schedule, self.diffusion.prediction, clip
        )
