"""Sampling as pure functions of parameters and arrays; UnCLIP compiles them.

Row i of a batch draws its noise from (seed, indices[i]) alone: a picture depends
neither on the batch it is drawn in, nor on its place there, nor on the devices.
"""

from typing import NamedTuple

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


def start_keys(seed, indices):
    """(B,) keys of the decoder's x_T."""
    return keys_of(seed, indices, DECODER, START)


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
    diffusion, sched = prior.config["diffusion"], _schedule(prior)
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
    timesteps = samplers.timesteps(sampler, sched, steps)
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


class Canvas(NamedTuple):
    """What a picture is painted on, where not on noise drawn from its key.

    Attributes:
      x_T: (B, S, S, 3) noise to start from.
      known: (B, S, S, 3) float32 in [-1, 1], the picture to keep where `keep` is 1.
      keep: (B, S, S, 1) float32 of 0 and 1.
    """

    x_T: jax.Array | None = None
    known: jax.Array | None = None
    keep: jax.Array | None = None


def draw_images(
    decoder: Part,
    params,
    clip_image,
    no_clip,
    tokens,
    clip_caption,
    seed,
    indices,
    scale,
    eta,
    canvas: Canvas,
    *,
    steps: int,
    sampler: str,
    guided: bool,
    rounded: bool = True,
):
    """Pictures for image embeddings (and captions), from the decoder.

    Guidance contrasts with the model that sees neither embedding nor caption.

    Known pixels replace the model's x_0 at each step, so that they follow their own
    path from x_T to what they are, whatever the sampler (inpainting without training;
    Song et al. 2021, "Score-based generative modeling", appendix I.2).

    Args:
      decoder: the decoder (its params are not looked at).
      params: its parameters.
      clip_image: (B, D) raw image embeddings.
      no_clip: (B,) bool; True rows see the null embedding instead.
      tokens: (B, L) int32.
      clip_caption: (clip_text (B, D), text_states (B, L, W)) for a decoder whose
        caption is "clip_states", else (None, None).
      seed: () uint32.
      indices: (B,) int32, the pictures' numbers.
      scale: guidance; unused unless `guided`.
      eta: noise of the DDIM steps; unused by other samplers.
      canvas: what to start from and what to keep.
      steps, sampler, guided, rounded: static.

    Returns:
      uint8 (B, S, S, 3), or float32 in [-1, 1] unless `rounded`.
    """
    sched = _schedule(decoder)
    condition = clip_image, no_clip, tokens, clip_caption
    # what invert_images did without a bound must be undone without one; predictions
    # that guidance has pushed out of the range of pictures need it
    exact = canvas.x_T is not None and not guided
    bound = None if exact else 1.0
    denoise = _denoiser(decoder, params, condition, scale if guided else 1, bound)

    def predict(x, t):
        pred = denoise(x, t)
        if canvas.known is None:
            return pred
        x0 = jnp.where(canvas.keep > 0, canvas.known, pred.x0)
        kept = process.interpret(sched, "x0", x, t, x0, None)
        return kept._replace(variance=pred.variance)

    side = decoder.module.image_size
    x_T = canvas.x_T
    if x_T is None:
        x_T = samplers.normal(start_keys(seed, indices), (side, side, 3))
    step_keys = keys_of(seed, indices, DECODER, STEPS)
    timesteps = samplers.timesteps(sampler, sched, steps)
    options = {"eta": eta} if sampler == "ddim" else {}
    run = samplers.SAMPLERS[sampler]
    images = run(predict, sched, x_T, timesteps, step_keys, **options)
    return process.to_uint8(images) if rounded else images.clip(-1, 1)


def invert_images(
    decoder: Part,
    params,
    images,
    clip_image,
    no_clip,
    tokens,
    clip_caption,
    scale,
    *,
    steps: int,
    guided: bool,
):
    """The noise from which DDIM with eta = 0 draws the given pictures.

    Paper, section 3: x_T of the latent (z_i, x_T). Nothing is clipped on the way.

    Args:
      images: float32 (B, S, S, 3) in [-1, 1].
      others: as for `draw_images`.

    Returns:
      x_T, float32 (B, S, S, 3).
    """
    sched = _schedule(decoder)
    condition = clip_image, no_clip, tokens, clip_caption
    predict = _denoiser(decoder, params, condition, scale if guided else 1, None)
    timesteps = schedule.strided_timesteps(sched.num_steps, steps)
    return samplers.ddim_inversion(predict, sched, images, timesteps)


def _schedule(part):
    diffusion = part.config["diffusion"]
    return schedule.make_schedule(diffusion["schedule"], diffusion["num_steps"])


def _denoiser(decoder, params, condition, scale, bound):
    """(x_t, t) -> process.Prediction of the guided decoder, |x_0| <= bound."""
    sched, kind = _schedule(decoder), decoder.config["diffusion"]["prediction"]

    def model(x, t, condition, drop):
        clip_image, no_clip, tokens, caption = condition
        inputs = x, t, clip_image, tokens, drop | no_clip, drop, *caption
        return decoder.module.apply({"params": params}, *inputs)

    denoise = guidance.classifier_free(model, condition, scale)
    return lambda x, t: process.interpret(sched, kind, x, t, denoise(x, t), bound)


def enlarge_images(
    upsampler: Part,
    params,
    images,
    seed,
    indices,
    last=None,
    *,
    steps: int,
    sampler: str = "ddim",
    rounded: bool = True,
):
    """Larger pictures of the same, from an upsampler, without guidance.

    Args:
      upsampler: the upsampler (its params are not looked at).
      params: its parameters.
      images: float32 (B, h, w, 3) in [-1, 1].
      seed: () uint32.
      indices: (B,) int32, the pictures' numbers.
      last: parameters that take the final step instead (Karlo's second network).
      steps, sampler, rounded: static.

    Returns:
      uint8 (B, H, W, 3), or float32 in [-1, 1] unless `rounded`.
    """
    module, diffusion = upsampler.module, upsampler.config["diffusion"]
    sched = _schedule(upsampler)
    timesteps = schedule.strided_timesteps(sched.num_steps, steps)

    def predict(x, t):
        weights = params
        if last is not None:
            is_last = t[0] == timesteps[-1]
            weights = jax.lax.cond(is_last, lambda: last, lambda: params)
        output = module.apply({"params": weights}, x, t, images)
        return process.interpret(sched, diffusion["prediction"], x, t, output, 1.0)

    scale = module.image_size // module.low_res_size
    shape = (scale * images.shape[1], scale * images.shape[2], 3)
    stream = UPSAMPLER, module.image_size
    x_T = samplers.normal(keys_of(seed, indices, *stream, START), shape)
    step_keys = keys_of(seed, indices, *stream, STEPS)
    large = samplers.SAMPLERS[sampler](predict, sched, x_T, timesteps, step_keys)
    return process.to_uint8(large) if rounded else large.clip(-1, 1)
