"""Larger pictures of the same, from an upsampler; pure functions, as in sampling."""

import jax

from unclip_jax.diffusion import process, samplers
from unclip_jax.generation import sampling
from unclip_jax.generation.resolve import SamplerOptions
from unclip_jax.interop.components import Component


def upsample(
    upsampler: Component,
    params,
    piece: sampling.Piece | None,
    images,
    seed,
    indices,
    last=None,
    *,
    options: SamplerOptions,
):
    """Larger pictures of the same, from an upsampler, without guidance.

    Args:
      upsampler: the upsampler (its params are not looked at).
      params: its parameters.
      piece: of the loop.
      images: float32 (B, h, w, 3) in [-1, 1].
      seed: () uint32.
      indices: (B,) int32, the pictures' numbers.
      last: parameters that take the final step instead (Karlo's second network).
      options: static.

    Returns:
      The sampler's state.
    """
    module, diffusion = upsampler.module, upsampler.config["diffusion"]
    sched = sampling.schedule_of(upsampler)
    last_t = sampling.timesteps_of(upsampler, options)[-1]

    def predict(x, t):
        weights = params
        if last is not None:
            is_last = t[0] == last_t
            weights = jax.lax.cond(is_last, lambda: last, lambda: params)
        output = module.apply({"params": weights}, x, t, images)
        return process.interpret(sched, diffusion["prediction"], x, t, output, 1.0)

    scale = module.image_size // module.low_res_size
    shape = (scale * images.shape[1], scale * images.shape[2], 3)
    stream = sampling.UPSAMPLER, module.image_size
    start = sampling.fold_keys(seed, indices, *stream, sampling.START)
    x_T = samplers.normal(start, shape)
    keys = sampling.fold_keys(seed, indices, *stream, sampling.STEPS)
    return sampling.run_sampler(upsampler, options, predict, x_T, keys, piece)


def finish_upsample(upsampler: Component, params, images, *, rounded: bool = True):
    """Pictures (B, H, W, 3) of what the upsampler has drawn, as of finish_decoder."""
    del upsampler, params
    return sampling.finish_images(images, rounded)
