"""Sampling as pure functions of parameters and arrays; UnCLIP compiles them.

Loops are run in pieces, between which the host reports progress and may stop: a
function with an argument `piece` returns the state of its sampler at the beginning
(None) or after that piece. A function of the same name with `finish_` makes the result.

Row i of a batch draws its noise from (seed, indices[i]) alone: a picture depends
neither on the batch it is drawn in, nor on its place there, nor on the devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import guidance, process, samplers, schedule
from unclip_jax.errors import UsageError
from unclip_jax.generation import latents
from unclip_jax.generation.resolve import SamplerOptions
from unclip_jax.interop.components import Component

# Streams of randomness of one picture.
PRIOR, DECODER, UPSAMPLER = 0, 1, 2
START, STEPS = 0, 1  # x_T, and the noise added at the steps
CODES = 2  # drawn by the autoregressive prior
EMBEDDING = 3  # noise that is added to the decoder's embedding

# Noise of pictures is that of the largest timestep with this signal sqrt(abar): without
# a bound on x_0, a step multiplies an error of epsilon by the ratio of its signals,
# more than 100 at the end of the cosine schedule (numbers in docs/sampling.md).
MIN_SIGNAL = 0.03

# The last noise of analytic variance, in grey levels (Bao et al. 2022 take 1 or 2).
LAST_NOISE = 2.0


def fold_keys(seed, indices, *path: int):
    """(B,) keys: key(seed) folded with each index, then with `path`."""

    def one(index):
        key = jax.random.fold_in(jax.random.key(seed), index)
        for step in path:
            key = jax.random.fold_in(key, step)
        return key

    return jax.vmap(one)(indices)


def start_keys(seed, indices):
    """(B,) keys of the decoder's x_T."""
    return fold_keys(seed, indices, DECODER, START)


def encode_image(clip: Component, params, images):
    """uint8 (B, S, S, 3) -> raw embeddings (B, D)."""
    return clip.module.apply({"params": params}, images, method="encode_image")


def encode_text(clip: Component, params, tokens):
    """int32 (B, L) -> raw embeddings (B, D)."""
    return clip.module.apply({"params": params}, tokens, method="encode_text")


def text_states(clip: Component, params, tokens):
    """int32 (B, L) -> states after CLIP's final LayerNorm (B, L, W)."""
    return clip.module.apply({"params": params}, tokens, method="text_states")


class Piece(NamedTuple):
    """A piece of a loop: some steps of all.

    Attributes:
      state: of the sampler, after the piece before.
      first: number of its first step.
      end: number of the step that follows it.
      total: number of steps of the loop.
    """

    state: Any
    first: jax.Array | np.int32
    end: jax.Array | np.int32
    total: jax.Array | np.int32


def runner(piece: Piece | None) -> Callable:
    """How a sampler of diffusion.samplers is to run its steps."""
    if piece is None:
        return lambda step, state, rows: state
    state, *steps = piece
    return lambda step, _, rows: samplers.run_piece(step, state, rows, *steps)


class Inpainting(NamedTuple):
    """What a picture is painted on, where not on noise drawn from its key.

    Attributes:
      x_T: (B, S, S, C) noise to start from.
      known: (B, S, S, C) float32, the picture in [-1, 1], or its latents, to keep where
        `keep` is 1.
      keep: (B, S, S, 1) float32 of 0 and 1.
      hint: (B, 8 S, 8 S, 3) float32 in [-1, 1], for a decoder that sees one.
      start: (B, S, S, C) float32, a picture in [-1, 1], or its latents, to which the
        noise of the first timestep is added.
    """

    x_T: jax.Array | np.ndarray | None = None
    known: jax.Array | np.ndarray | None = None
    keep: jax.Array | np.ndarray | None = None
    hint: jax.Array | np.ndarray | None = None
    start: jax.Array | np.ndarray | None = None


def sample_decoder(
    decoder: Component,
    params,
    piece: Piece | None,
    clip_image,
    no_clip,
    tokens,
    clip_caption,
    seed,
    indices,
    scale,
    eta,
    inpainting: Inpainting,
    noise_level=0,
    negative=None,
    *,
    options: SamplerOptions,
):
    """Pictures, or latents of them, for image embeddings (and captions).

    Guidance contrasts with the model that sees neither embedding nor caption; of a
    decoder with params["guide"], with a weaker one that sees both.

    Known pixels replace the model's x_0 at each step, so that they follow their own
    path from x_T to what they are, whatever the sampler (inpainting without training;
    Song et al. 2021, "Score-based generative modeling", appendix I.2). Of a decoder
    that was trained for it they replace x_t, as in Kandinsky.

    Args:
      decoder: the decoder (its params are not looked at).
      params: its parameters.
      piece: of the loop.
      clip_image: (B, D) raw image embeddings.
      no_clip: (B,) bool; True rows see the null embedding instead.
      tokens: (B, L) int32.
      clip_caption: (clip_text (B, D), text_states (B, L, W)) for a decoder whose
        caption is "clip_states", else (None, None).
      seed: () uint32.
      indices: (B,) int32, the pictures' numbers.
      scale: guidance; unused unless `options.guided`.
      eta: noise of the DDIM steps; unused by other samplers.
      inpainting: what to start from and what to keep.
      noise_level: () int32, of the noise on the embeddings of a decoder that takes it.
      negative: (B, D) raw embeddings that guidance contrasts with instead.
      options: static.

    Returns:
      The sampler's state.
    """
    sched = schedule_of(decoder)
    x_T, known, keep, start = (
        getattr(inpainting, name) for name in ("x_T", "known", "keep", "start")
    )
    if x_T is None:
        shape = latents.noise_shape(decoder, options.size)
        x_T = samplers.normal(start_keys(seed, indices), shape)
    first = timesteps_of(decoder, options)[0]
    if start is not None:
        x_T = add_noise(sched, start, first, x_T)
    is_inpainter = decoder.module.extra == "inpaint"
    if is_inpainter and keep is not None:
        keep = latents.widen_hole(keep)
    if decoder.module.extra == "noise_level":
        keys = fold_keys(seed, indices, DECODER, EMBEDDING)
        noise = samplers.normal(keys, clip_image.shape[1:])
        noised = latents.noise_embeddings(
            decoder, params, clip_image, noise_level, noise
        )
        # at level 0 there is a little, of which inversion knew nothing
        exact = options.inverted & (noise_level == 0)
        clip_image = jnp.where(exact, clip_image, noised)
    extra = extra_input(decoder, x_T, inpainting._replace(keep=keep), noise_level)
    condition = clip_image, no_clip, tokens, clip_caption, *extra
    # what invert_images did without a bound and without a step from x_0 must be undone
    # so; predictions that guidance has pushed out of the range of pictures need both
    exact = options.inverted and not options.guided
    bound = latents.x0_bound(decoder)
    if exact:
        bound = None if decoder.module.is_latent else _bound_by_noise(eta)
    model, weaker = decoder_models(decoder, params)
    if negative is not None:
        if weaker is not None:
            raise UsageError(
                "this decoder is guided by a weaker one: a negative prompt has no place"
            )
        model, condition = with_negative(model), (negative, *condition)
    denoise = denoiser(decoder, model, condition, scale, options, bound, weaker)

    def predict(x, t):
        if known is None or keep is None:
            return denoise(x, t)
        if is_inpainter:
            on_its_path = process.q_sample(sched, known, t, x_T)
            return denoise(jnp.where((keep > 0) & (t[0] < first), on_its_path, x), t)
        pred = denoise(x, t)
        x0 = jnp.where(keep > 0, known, pred.x0)
        return process.interpret(sched, "x0", x, t, x0, None)._replace(
            variance=pred.variance
        )

    keys = fold_keys(seed, indices, DECODER, STEPS)
    bounds = {"bound": 1.0, "pixels": LAST_NOISE}
    return run_sampler(decoder, options, predict, x_T, keys, piece, eta, **bounds)


def finish_decoder(
    decoder: Component, params, images, inpainting: Inpainting, *, rounded: bool = True
):
    """Pictures of what the decoder has drawn.

    Args:
      decoder, params, inpainting: as for sample_decoder.
      images: (B, S, S, C) float32.
      rounded: static.

    Returns:
      uint8 (B, S, S, 3), or float32 in [-1, 1] unless `rounded`; of a decoder of
      latents, these, float32.
    """
    del params
    known, keep = inpainting.known, inpainting.keep
    if decoder.module.extra == "inpaint" and known is not None and keep is not None:
        images = jnp.where(latents.widen_hole(keep) > 0, known, images)
    if decoder.module.is_latent:
        return images
    return finish_images(images, rounded)


def finish_images(images, rounded: bool):
    """float32 (B, H, W, 3) -> uint8, or within [-1, 1] unless `rounded`."""
    return process.to_uint8(images) if rounded else images.clip(-1, 1)


def invert_images(
    decoder: Component,
    params,
    piece: Piece | None,
    images,
    clip_image,
    no_clip,
    tokens,
    clip_caption,
    scale,
    hint=None,
    *,
    options: SamplerOptions,
    corrections: int = 0,
):
    """The noise from which DDIM with eta = 0 draws the given pictures.

    Paper, section 3: x_T of the latent (z_i, x_T). Nothing is clipped on the way, and
    guidance is the same at all timesteps.

    Args:
      piece: of the loop.
      images: float32 (B, S, S, 3) in [-1, 1].
      hint: as of Inpainting, for a decoder that sees one; of others that see something
        besides, embeddings are without noise, and all of the image is drawn.
      options: of inverted noise, as sample_decoder will use it.
      corrections: static; see samplers.ddim_inversion.
      others: as for `sample_decoder`.

    Returns:
      x_T, float32 (B, S, S, 3).
    """
    sched = schedule_of(decoder)
    extra = extra_input(decoder, images, Inpainting(hint=hint))
    condition = clip_image, no_clip, tokens, clip_caption, *extra
    model, weaker = decoder_models(decoder, params)
    predict = denoiser(decoder, model, condition, scale, options, None, weaker)
    timesteps, to_x0 = path_of(decoder, options)
    return samplers.ddim_inversion(
        predict, sched, images, timesteps, corrections, to_x0, runner(piece)
    )


def _bound_by_noise(eta):
    """Bounds |x_0| by 1 in so far as noise is added: not at eta = 0, wholly at 1.

    Without noise the bound would keep DDIM from undoing its inversion; with it the path
    is no longer the picture's, and without a bound errors would grow.
    """
    return lambda x_0: x_0 + jnp.minimum(eta, 1) * (x_0.clip(-1, 1) - x_0)


def timesteps_of(part: Component, options: SamplerOptions):
    """The timesteps (n,) that `options` visits, descending."""
    least = MIN_SIGNAL if options.inverted else 0.0
    steps, spacing = options.steps, part.config["diffusion"].get("spacing")
    # solvers of second order have a spacing of their own
    if spacing and "leading" in spacing and options.sampler in ("ddim", "ddpm"):
        count = schedule.count_of(steps)
        if count is not None:
            steps = spacing.replace("leading", f"leading{count}")
    timesteps = samplers.timesteps(options.sampler, schedule_of(part), steps, least)
    count = int(len(timesteps) * options.strength)
    if not count:
        raise UsageError(
            f"{part.kind} strength {options.strength:g} of {len(timesteps)} steps "
            "leaves none of them: raise either"
        )
    return timesteps[len(timesteps) - count :]


def add_noise(sched: schedule.Schedule, x_0, first: int, noise):
    """x_t of (B, ..., C) at the timestep `first`, with this noise."""
    return process.q_sample(sched, x_0, jnp.full(len(x_0), first), noise)


def path_of(part: Component, options: SamplerOptions) -> tuple[np.ndarray, bool]:
    """(the timesteps of a part's loop, whether a step from the last to x_0 follows).

    That step puts the model's x_0 in place of x, which inversion cannot undo, so that
    DDIM leaves it out there and back; what guidance has pushed out of the range of
    pictures needs it.
    """
    timesteps = timesteps_of(part, options)
    if options.inverted:
        return timesteps, options.guided or len(timesteps) == 1
    if options.sampler == "ddim" and not part.config["diffusion"].get("to_x0", True):
        # ends at the noise of timestep 0, as it was published
        timesteps = timesteps if timesteps[-1] == 0 else np.append(timesteps, 0)
        return timesteps, len(timesteps) == 1
    return timesteps, True


def count_steps(part: Component, options: SamplerOptions) -> int:
    """How many steps a part's loop makes; Heun's have two calls of the model each."""
    timesteps, to_x0 = path_of(part, options)
    return len(timesteps) - (not to_x0)


def decoder_model(decoder: Component, params):
    """(x_t, t, condition, drop) -> what the decoder predicts.

    The condition is (clip_image, no_clip, tokens, clip_caption) of sample_decoder, and
    what `extra_input` returns.
    """

    def model(x, t, condition, drop):
        clip_image, no_clip, tokens, caption, *extra = condition
        inputs = x, t, clip_image, tokens, drop | no_clip, drop, *caption
        options = {"extra": extra[0]} if extra else {}
        return decoder.module.apply({"params": params}, *inputs, **options)

    return model


def decoder_models(decoder: Component, params) -> tuple[Callable, Callable | None]:
    """`decoder_model`, and that of the decoder which guides it, if one does."""
    own = {name: value for name, value in params.items() if name != "guide"}
    weaker = decoder_model(decoder, params["guide"]) if "guide" in params else None
    return decoder_model(decoder, own), weaker


def with_negative(model):
    """A decoder's model whose unconditional rows see other embeddings, given first."""

    def contrasted(x, t, condition, drop):
        negative, clip_image, *rest = condition
        clip_image = jnp.where(drop[:, None], negative, clip_image)
        return model(x, t, (clip_image, *rest), jnp.zeros_like(drop))

    return contrasted


def extra_input(decoder: Component, x, inpainting: Inpainting, noise_level=0) -> tuple:
    """What the decoder sees besides x (B, h, w, C): nothing, or one array."""
    kind = decoder.module.extra
    if kind == "none":
        return ()
    if kind == "noise_level":
        return (jnp.full(len(x), noise_level),)
    if kind == "hint":
        return (inpainting.hint,)
    known, keep = inpainting.known, inpainting.keep
    if known is None or keep is None:  # all of the image is to be drawn
        return (jnp.zeros((*x.shape[:-1], x.shape[-1] + 1)),)
    return (jnp.concatenate([known * keep, keep], axis=-1),)


def schedule_of(part: Component) -> schedule.Schedule:
    """The process that the part was trained on."""
    return part.noise_schedule


def denoiser(part, model, condition, scale, options, bound, weaker=None):
    """(x_t, t) -> process.Prediction of the guided model, |x_0| <= bound.

    It is guided by the `weaker` model, if there is one, else without a classifier.
    """
    sched, kind = schedule_of(part), part.config["diffusion"]["prediction"]
    scale = scale if options.guided else 1
    within = {
        "interval": options.guidance_interval,
        "rescale": options.guidance_rescale,
    }
    if weaker is None:
        guided = guidance.classifier_free(model, condition, scale, **within)
    else:
        guided = guidance.autoguidance(model, weaker, condition, scale, **within)
    if options.dynamic_threshold is not None:
        bound = process.dynamic_threshold(options.dynamic_threshold)
    return process.make_denoiser(guided, sched, kind, bound)


def run_sampler(part, options, predict, x_T, keys, piece, eta=0.0, **bounds):
    """The state of a part's sampler, by the steps and variance of `options`.

    Args:
      piece: of its loop.
      eta: of DDIM.
      **bounds: of diffusion.analytic.reverse_variance.
    """
    sched, own = schedule_of(part), {}  # own: of this sampler alone
    if options.sampler == "ddpm":
        own["variance"] = options.variance
    if options.variance == "analytic":
        own |= {"statistic": part.analytic, **bounds}
    timesteps, to_x0 = path_of(part, options)
    if options.sampler == "ddim":
        own |= {"eta": eta, "to_x0": to_x0}
    sampler = samplers.SAMPLERS[options.sampler]
    return sampler(predict, sched, x_T, timesteps, keys, run=runner(piece), **own)
