"""Image embeddings for captions, from either prior; pure functions, as in sampling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from unclip_jax.diffusion import samplers
from unclip_jax.generation import sampling
from unclip_jax.generation.resolve import SamplerOptions
from unclip_jax.interop.components import Component
from unclip_jax.models import ar_sampling

# The bound on |x0| in the prior's space, in standard deviations (Karlo's), of a prior
# whose config does not say.
PRIOR_CLIP = {"standardize": 5.0}


def draw_embeddings(
    prior: Component,
    params,
    tokens,
    clip_text,
    seed,
    indices,
    scale,
    text_states=None,
    *,
    drawing: SamplerOptions,
    num_candidates: int,
    report: Callable | None = None,
):
    """Image embeddings for captions, from the diffusion prior.

    Of `num_candidates` drawn per caption, keeps the one nearest in angle to the text
    embedding (paper, section 2.2: the higher z_i . z_t).

    Args:
      prior: the prior (its params are not looked at).
      params: its parameters.
      tokens: (B, L) int32.
      clip_text: (B, D) raw text embeddings.
      seed: () uint32.
      indices: (B,) int32, the pictures' numbers.
      scale: guidance; unused unless `drawing.guided`.
      text_states: (B, L, W) CLIP's, for a prior with caption "clip_states".
      drawing, num_candidates, report: static; see sampling.run_sampler.

    Returns:
      (B, D) raw image embeddings.
    """
    many = num_candidates
    condition = tokens, clip_text, text_states
    condition = jax.tree.map(lambda a: jnp.repeat(a, many, axis=0), condition)
    bound = prior.config["diffusion"].get("clip")
    bound = bound or PRIOR_CLIP.get(prior.config["embedding"])
    predict = sampling.denoiser(
        prior, prior_model(prior, params), condition, scale, drawing, bound
    )
    start = candidate_keys(seed, indices, many, sampling.START)
    z_T = samplers.normal(start, clip_text.shape[1:])
    keys = candidate_keys(seed, indices, many, sampling.STEPS)
    z = sampling.run_sampler(prior, drawing, predict, z_T, keys, report)
    z = prior.module.apply({"params": params}, z, method="denormalize")
    return nearest_to_text(z, clip_text, many)


def prior_model(prior: Component, params):
    """(z_t, t, (tokens, clip_text, text_states), drop) -> what the prior predicts."""

    def model(z, t, condition, drop):
        tokens, clip_text, states = condition
        inputs = z, t, tokens, clip_text, drop, states
        return prior.module.apply({"params": params}, *inputs)

    return model


def draw_embeddings_by_codes(
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
        for draw_embeddings.
      temperature, top_k, top_p, dot_quantile, truncated: see models.ar_sampling.sample.

    Returns:
      (B, D) raw image embeddings.
    """
    many = num_candidates
    codes = ar_sampling.sample(
        prior.module,
        params,
        jnp.repeat(tokens, many, axis=0),
        jnp.repeat(clip_text, many, axis=0),
        candidate_keys(seed, indices, many, sampling.CODES),
        scale=scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        dot_quantile=dot_quantile,
        guided=guided,
        truncated=truncated,
    )
    z = prior.module.apply({"params": params}, codes, method="decode")
    return nearest_to_text(z, clip_text, many)


def candidate_keys(seed, indices, many: int, stream: int):
    """(B * many,) keys of a prior's stream, those of one picture together."""
    keys = sampling.keys_of(seed, indices, sampling.PRIOR, stream)  # (B,)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold, (0, None))(keys, jnp.arange(many)).reshape(-1)


def nearest_to_text(z, clip_text, many: int):
    """Of z (B * many, D), `many` candidates per caption, the best by angle: (B, D)."""
    z = z.reshape(-1, many, z.shape[-1])  # (B, K, D)
    score = (z * clip_text[:, None]).sum(-1) / jnp.linalg.norm(z, axis=-1).clip(1e-12)
    return jnp.take_along_axis(z, score.argmax(1)[:, None, None], axis=1)[:, 0]
