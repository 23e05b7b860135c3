"""Sampling as pure functions of parameters and arrays; UnCLIP compiles them.

Row i of a batch draws its noise from (seed, indices[i]) alone: a picture depends
neither on the batch it is drawn in, nor on its place there, nor on the devices.
"""

import jax
import jax.numpy as jnp

from unclip_jax.diffusion import guidance, process, samplers, schedule
from unclip_jax.interop.parts import Part
from unclip_jax.models import ar_sampling

# Streams of randomness of one picture.
PRIOR, DECODER, UPSAMPLER = 0, 1, 2
START, STEPS = 0, 1  # x_T, and the noise added at the steps
CODES = 2  # drawn by the autoregressive prior

# The bound on |x0| in the prior's space, in standard deviations (Karlo's), of a prior
# whose config does not say.
PRIOR_CLIP = {"standardize": 5.0}


def keys_of(seed, indices, *path: int):
    """(B,) keys: key(seed) folded with each index, then with `path`."""

    def one(index):
        key = jax.random.fold_in(jax.random.key(seed), index)
        for step in path:
            key = jax.random.fold_in(key, step)
        return key

    return jax.vmap(one)(indices)


def encode_image(clip: Part, params, images):
    """uint8 (B, S, S, 3) -> raw embeddings (B, D)."""
    return clip.module.apply({"params": params}, images, method="encode_image")


def encode_text(clip: Part, params, tokens):
    """int32 (B, L) -> raw embeddings (B, D)."""
    return clip.module.apply({"params": params}, tokens, method="encode_text")


def text_states(clip: Part, params, tokens):
    """int32 (B, L) -> states after CLIP's final LayerNorm (B, L, W)."""
    return clip.module.apply({"params": params}, tokens, method="text_states")


def draw_embeddings(
    prior: Part,
    params,
    tokens,
    clip_text,
    seed,
    indices,
    scale,
    text_states=None,
    *,
    steps: int,
    sampler: str,
    guided: bool,
    num_candidates: int,
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
      scale: guidance; unused unless `guided`.
      text_states: (B, L, W) CLIP's, for a prior with caption "clip_states".
      steps, sampler, guided, num_candidates: static.

    Returns:
      (B, D) raw image embeddings.
    """
    diffusion = prior.config["diffusion"]
    sched = schedule.make_schedule(diffusion["schedule"], diffusion["num_steps"])
    variables = {"params": params}

    def model(z, t, condition, drop):
        tokens, clip_text, states = condition
        return prior.module.apply(variables, z, t, tokens, clip_text, drop, states)

    many = num_candidates
    condition = tokens, clip_text, text_states
    condition = jax.tree.map(lambda a: jnp.repeat(a, many, axis=0), condition)
    denoise = guidance.classifier_free(model, condition, scale if guided else 1)
    bound = diffusion.get("clip") or PRIOR_CLIP.get(prior.config["embedding"])

    def predict(z, t):
        kind = diffusion["prediction"]
        return process.interpret(sched, kind, z, t, denoise(z, t), bound)

    start = candidate_keys(seed, indices, many, START)
    z_T = samplers.normal(start, clip_text.shape[1:])
    timesteps = schedule.strided_timesteps(sched.num_steps, steps)
    run = samplers.SAMPLERS[sampler]
    z = run(predict, sched, z_T, timesteps, candidate_keys(seed, indices, many, STEPS))
    z = prior.module.apply(variables, z, method="denormalize")
    return nearest_to_text(z, clip_text, many)


def draw_embeddings_by_codes(
    prior: Part,
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
        candidate_keys(seed, indices, many, CODES),
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
    keys = keys_of(seed, indices, PRIOR, stream)  # (B,)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold, (0, None))(keys, jnp.arange(many)).reshape(-1)


def nearest_to_text(z, clip_text, many: int):
    """Of z (B * many, D), `many` candidates per caption, the best by angle: (B, D)."""
    z = z.reshape(-1, many, z.shape[-1])  # (B, K, D)
    score = (z * clip_text[:, None]).sum(-1) / jnp.linalg.norm(z, axis=-1).clip(1e-12)
    return jnp.take_along_axis(z, score.argmax(1)[:, None, None], axis=1)[:, 0]


def draw_images(
    decoder: Part,
    params,
    clip_image,
    tokens,
    seed,
    indices,
    scale,
    eta,
    *,
    steps: int,
    sampler: str,
    guided: bool,
    rounded: bool = True,
):
    """Pictures for image embeddings (and captions), from the decoder.

    Guidance contrasts with the model that sees neither embedding nor caption.

    Args:
      decoder: the decoder (its params are not looked at).
      params: its parameters.
      clip_image: (B, D) raw image embeddings.
      tokens: (B, L) int32.
      seed: () uint32.
      indices: (B,) int32, the pictures' numbers.
      scale: guidance; unused unless `guided`.
      eta: noise of the DDIM steps; unused by other samplers.
      steps, sampler, guided, rounded: static.

    Returns:
      uint8 (B, S, S, 3), or float32 in [-1, 1] unless `rounded`.
    """
    diffusion = decoder.config["diffusion"]
    sched = schedule.make_schedule(diffusion["schedule"], diffusion["num_steps"])

    def model(x, t, condition, drop):
        return decoder.module.apply({"params": params}, x, t, *condition, drop, drop)

    condition = clip_image, tokens
    denoise = guidance.classifier_free(model, condition, scale if guided else 1)

    def predict(x, t):
        kind = diffusion["prediction"]
        return process.interpret(sched, kind, x, t, denoise(x, t), 1.0)

    side = decoder.module.image_size
    x_T = samplers.normal(keys_of(seed, indices, DECODER, START), (side, side, 3))
    step_keys = keys_of(seed, indices, DECODER, STEPS)
    timesteps = schedule.strided_timesteps(sched.num_steps, steps)
    options = {"eta": eta} if sampler == "ddim" else {}
    run = samplers.SAMPLERS[sampler]
    images = run(predict, sched, x_T, timesteps, step_keys, **options)
    return process.to_uint8(images) if rounded else images.clip(-1, 1)


def enlarge_images(
    upsampler: Part, params, images, seed, indices, *, steps: int, rounded: bool = True
):
    """Larger pictures of the same, from an upsampler, by DDIM without guidance.

    Args:
      upsampler: the upsampler (its params are not looked at).
      params: its parameters.
      images: float32 (B, h, w, 3) in [-1, 1].
      seed: () uint32.
      indices: (B,) int32, the pictures' numbers.
      steps, rounded: static.

    Returns:
      uint8 (B, H, W, 3), or float32 in [-1, 1] unless `rounded`.
    """
    module, diffusion = upsampler.module, upsampler.config["diffusion"]
    sched = schedule.make_schedule(diffusion["schedule"], diffusion["num_steps"])

    def predict(x, t):
        output = module.apply({"params": params}, x, t, images)
        return process.interpret(sched, diffusion["prediction"], x, t, output, 1.0)

    scale = module.image_size // module.low_res_size
    shape = (scale * images.shape[1], scale * images.shape[2], 3)
    stream = UPSAMPLER, module.image_size
    x_T = samplers.normal(keys_of(seed, indices, *stream, START), shape)
    step_keys = keys_of(seed, indices, *stream, STEPS)
    timesteps = schedule.strided_timesteps(sched.num_steps, steps)
    large = samplers.ddim(predict, sched, x_T, timesteps, step_keys)
    return process.to_uint8(large) if rounded else large.clip(-1, 1)
