"""Stage upsampler: a smaller picture -> a larger one (paper, section 2.1, appendix C).

Trains on what the data gives as `image`: whole pictures or, with
config.data.degradation, random crops of them. The conditioning picture is `low_res`
where the data has it (BSR, for 256 -> 1024); else it is made here, on the device, by
shrinking `image` and blurring a part of the rows (for 64 -> 256). It is shrunk as
data.sources.image_source shrinks what the decoder learns to draw, by bicubic
interpolation.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.diffusion import process, samplers
from unclip_jax.errors import UsageError
from unclip_jax.stages.diffusion import DiffusionConfig, DiffusionStage

DOWNSAMPLE = ("area", "bicubic")


@dataclasses.dataclass(frozen=True)
class Options:
    """config.stage_options of this stage."""

    downsample: str = "bicubic"  # how `image` is shrunk, antialiased; or "area"
    blur_probability: float = 0.5  # of the rows whose conditioning is blurred
    blur_kernel: int = 3  # pixels of the small picture
    blur_sigma: float = 0.6

    def __post_init__(self):
        where = "config.stage_options"
        if self.downsample not in DOWNSAMPLE:
            raise UsageError(
                f"{where}.downsample {self.downsample!r}: expected one of "
                f"{', '.join(DOWNSAMPLE)}"
            )
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0 or self.blur_sigma <= 0:
            raise UsageError(
                f"{where}: blur_kernel must be odd and blur_sigma positive, got "
                f"{self.blur_kernel} and {self.blur_sigma}"
            )


@dataclasses.dataclass(frozen=True)
class Diffusion(DiffusionConfig):
    """config.diffusion of this stage."""

    sampler: str = "ddim"  # in previews, and by default in generation
    sampling_steps: int | str = 27  # likewise
    min_snr_gamma: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.variance == "analytic":
            raise UsageError(
                "config.diffusion.variance 'analytic': there are no tables for "
                "upsamplers, only for the prior and the decoder"
            )


@dataclasses.dataclass(frozen=True)
class Stage(DiffusionStage):
    """Trains one upsampler; neither captions nor embeddings are looked at."""

    model: models.Upsampler
    fields: dict[str, Any]
    diffusion: Diffusion
    options: Options
    batch_spec: dict[str, Any]

    num_input_keys = 1

    @classmethod
    def from_config(cls, config: stages.StageConfig, spec: DataSpec):
        """Fits the stage to the data; UsageError where it does not."""
        fields = stages.model_fields(config, spec, ("image_size",))
        model = models.build("upsampler", fields, stages.compute_dtype(config))
        scale, rest = divmod(model.image_size, model.low_res_size)
        side = spec.crop_size or model.image_size
        small = spec.low_res_size
        if rest or side % scale or small not in (None, side // scale):
            given = "" if small is None else f" with {small}-pixel low_res"
            raise UsageError(
                f"config.model makes {model.image_size} pixels of "
                f"{model.low_res_size}, but the data has squares of {side}{given}: the "
                "ratios must be the same whole number"
            )
        batch_spec = {"image": ((side, side, 3), "uint8")}
        if small is not None:
            batch_spec["low_res"] = ((small, small, 3), "uint8")
        return cls(
            model=model,
            fields=fields,
            diffusion=Diffusion.from_config(config, model.learned_sigma),
            options=config_lib.build(
                Options, config.stage_options, "config.stage_options"
            ),
            batch_spec=batch_spec,
        )

    @property
    def scale(self) -> int:
        """How many times larger the result is than the conditioning picture."""
        return self.model.image_size // self.model.low_res_size

    def init(self, rng):
        """Fresh parameters, float32, with what the data decides."""
        side = self.batch_spec["image"][0][0]
        x = jnp.zeros((1, side, side, 3))
        low_res = shrink(x, self.scale)
        return self.model.init(rng, x, jnp.zeros(1, int), low_res)["params"]

    def condition(self, batch, rng=None):
        """The conditioning pictures (B, h, w, 3) in [-1, 1]; corrupted only with `rng`.

        Pictures that come degraded (`low_res`) may be blurred on top of that, if the
        options say so.
        """
        if "low_res" in batch:
            low_res = process.from_uint8(batch["low_res"])
        else:
            image = process.from_uint8(batch["image"])
            low_res = shrink(image, self.scale, self.options.downsample)
            low_res = low_res.clip(-1, 1)  # as an image is; bicubic overshoots
        if rng is None or not self.options.blur_probability:
            return low_res
        blurred = blur(low_res, self.options.blur_kernel, self.options.blur_sigma)
        rows = stages.bernoulli(rng, self.options.blur_probability, len(low_res))
        return jnp.where(rows[:, None, None, None], blurred, low_res)

    def x_0(self, params, batch):
        """What is to be denoised, float32."""
        del params
        return process.from_uint8(batch["image"])

    def training_inputs(self, batch, keys):
        """Corrupts the conditioning pictures."""
        (rng,) = keys
        return (self.condition(batch, rng),)

    def preview(self, params, rng, batch):
        """Pairs of (conditioning picture in large pixels, what is drawn from it)."""
        low_res = self.condition(batch)

        def model(x_t, t):
            return self.model.apply({"params": params}, x_t, t, low_res)

        shape, options = batch["image"].shape, self.diffusion
        keys = jax.random.split(rng, shape[0])
        x_T = samplers.normal(keys, shape[1:])
        noise_schedule = options.noise_schedule
        steps = samplers.timesteps(
            options.sampler, noise_schedule, options.sampling_steps
        )
        sample = samplers.SAMPLERS[options.sampler]
        drawn = sample(self.denoiser(model, 1.0), noise_schedule, x_T, steps, keys)
        small = process.to_uint8(low_res)
        small = small.repeat(self.scale, axis=1).repeat(self.scale, axis=2)
        pairs = jnp.stack([small, process.to_uint8(drawn)], axis=1)
        return pairs.reshape(-1, *shape[1:])

    def export(self):
        """{"part", "config"}: what rebuilds the model for sampling."""
        return {
            "part": f"upsampler_{self.model.image_size}",
            "config": {
                "model": self.fields,
                "diffusion": dataclasses.asdict(self.diffusion),
            },
        }


def shrink(x, scale: int, method: str = "area"):
    """(B, H, W, C) -> (B, H / scale, W / scale, C), antialiased."""
    b, h, w, c = x.shape
    if method == "area":
        return x.reshape(b, h // scale, scale, w // scale, scale, c).mean((2, 4))
    shape = (b, h // scale, w // scale, c)
    return jax.image.resize(x, shape, method, antialias=True)


def blur(x, side: int, sigma: float):
    """Gaussian blur of (B, H, W, C) with a (side, side) kernel; edges are mirrored."""
    r = side // 2
    weights = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
    weights = weights / weights.sum()
    for axis in (1, 2):
        pads = [(r, r) if i == axis else (0, 0) for i in range(4)]
        padded, n = jnp.pad(x, pads, "reflect"), x.shape[axis]
        taps = [jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in range(side)]
        x = jnp.asarray(sum(float(w) * t for w, t in zip(weights, taps, strict=True)))
    return x
