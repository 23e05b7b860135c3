"""Image embeddings for captions, from either prior; pure functions, as in sampling."""

import typing

import jax
import jax.numpy as jnp

from unclip_jax.diffusion import samplers
from unclip_jax.generation import sampling
from unclip_jax.generation.resolve import SamplerOptions
from unclip_jax.interop.components import Component
from unclip_jax.models import ar_sampling
from unclip_jax.models.ar_prior import AutoregressivePrior

# The bound on |x0| in the prior's space, in standard deviations (Karlo's), of a prior
# whose config does not say.
PRIOR_CLIP = {"standardize": 5.0}


def sample_prior(
    prior: Component,
    params,
    piece: sampling.Piece | None,
    tokens,
    clip_text,
    seed,
    indices,
    scale,
    text_states=None,
    start=None,
    negative=None,
    *,
    options: SamplerOptions,
    num_candidates: int,
):
    """Image embeddings for captions, from the diffusion prior.

    Args:
      prior: the prior (its params are not looked at).
      params: its parameters.
      piece: of the loop.
      tokens: (B, L) int32.
      clip_text: (B, D) raw text embeddings.
      seed: () uint32.
      indices: (B,) int32, the pictures' numbers.
      scale: guidance; unused unless `options.guided`.
      text_states: (B, L, W) CLIP's, for a prior with caption "clip_states".
      start: (B, D) raw image embeddings, to which the noise of the first timestep is
        added, in the prior's space; None starts from noise.
      negative: (tokens, clip_text, text_states) of captions that guidance contrasts
        with, instead of the empty one.
      options, num_candidates: static.

    Returns:
      The sampler's state, of (B * num_candidates, D).
    """
    condition = tokens, clip_text, text_states
    if negative is not None:
        condition = (*condition, negative)
    condition = jax.tree.map(lambda a: jnp.repeat(a, num_candidates, axis=0), condition)
    bound = prior.config["diffusion"].get("clip")
    bound = bound or PRIOR_CLIP.get(prior.config["embedding"])
    predict = sampling.denoiser(
        prior, prior_model(prior, params), condition, scale, options, bound
    )
    keys = candidate_keys(seed, indices, num_candidates, sampling.START)
    z_T = samplers.normal(keys, clip_text.shape[1:])
    if start is not None:
        z = prior.module.apply({"params": params}, start, method="normalize")
        z = jnp.repeat(jnp.asarray(z), num_candidates, axis=0)
        first = sampling.timesteps_of(prior, options)[0]
        z_T = sampling.add_noise(sampling.schedule_of(prior), z, first, z_T)
    keys = candidate_keys(seed, indices, num_candidates, sampling.STEPS)
    return sampling.run_sampler(prior, options, predict, z_T, keys, piece)


def finish_prior(prior: Component, params, z, clip_text, *, num_candidates: int):
    """Raw image embeddings (B, D) of what the prior has drawn.

    Of `num_candidates` drawn per caption, keeps the one nearest in angle to the text
    embedding (paper, section 2.2: the higher z_i . z_t).
    """
    z = prior.module.apply({"params": params}, z, method="denormalize")
    return nearest_to_text(z, clip_text, num_candidates)


def prior_model(prior: Component, params):
    """(z_t, t, condition, drop) -> what the prior predicts.

    The condition is (tokens, clip_text, text_states); a fourth entry, the same of other
    captions, is what rows that are dropped see in place of the empty one.
    """

    def model(z, t, condition, drop):
        *caption, negative = condition if len(condition) == 4 else (*condition, None)
        if negative is not None:

            def choose(a, b):
                return jnp.where(drop.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

            caption = jax.tree.map(choose, negative, tuple(caption))
            drop = jnp.zeros_like(drop)
        tokens, clip_text, states = caption
        inputs = z, t, tokens, clip_text, drop, states
        return prior.module.apply({"params": params}, *inputs)

    return model


def sample_ar_prior(
    prior: Component,
    params,
    tokens,
    clip_text,
    seed,
    indices,
    scale,
    temperature,
    top_k,
    top_p,
    dot_quantile,
    *,
    guided: bool,
    truncated: bool,
    num_candidates: int,
):
    """Image embeddings for captions, from the autoregressive prior.

    Args:
      prior, params, tokens, clip_text, seed, indices, scale, guided, num_candidates: as
        for sample_prior.
      temperature, top_k, top_p, dot_quantile, truncated: see models.ar_sampling.sample.

    Returns:
      (B, D) raw image embeddings.
    """
    module = typing.cast(AutoregressivePrior, prior.module)
    codes = ar_sampling.sample(
        module,
        params,
        jnp.repeat(tokens, num_candidates, axis=0),
        jnp.repeat(clip_text, num_candidates, axis=0),
        candidate_keys(seed, indices, num_candidates, sampling.CODES),
        scale=scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        dot_quantile=dot_quantile,
        guided=guided,
        truncated=truncated,
    )
    z = prior.module.apply({"params": params}, codes, method="decode")
    return nearest_to_text(z, clip_text, num_candidates)


def candidate_keys(seed, indices, num_candidates: int, stream: int):
    """(B * num_candidates,) keys of a prior's stream, those of one picture together."""
    keys = sampling.fold_keys(seed, indices, sampling.PRIOR, stream)  # (B,)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold, (0, None))(keys, jnp.arange(num_candidates)).reshape(-1)


def nearest_to_text(z, clip_text, num_candidates: int):
    """Returns (B, D): of the candidates z (B * num_candidates, D) the best by angle."""
    z = z.reshape(-1, num_candidates, z.shape[-1])  # (B, K, D)
    score = (z * clip_text[:, None]).sum(-1) / jnp.linalg.norm(z, axis=-1).clip(1e-12)
    return jnp.take_along_axis(z, score.argmax(1)[:, None, None], axis=1)[:, 0]
