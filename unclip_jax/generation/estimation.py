"""Measures predictions of a component on examples.

They are the errors that analytic variance is made from, and the likelihood of images.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import analytic, bound, process, schedule
from unclip_jax.errors import UsageError
from unclip_jax.generation import checks, prior_sampling, sampling
from unclip_jax.generation.unclip import UnCLIP
from unclip_jax.interop.components import Component
from unclip_jax.progress import Progress, on_step

ESTIMATE, BITS = 3, 4  # streams of randomness, beside those of sampling


def spread_timesteps(part: Component, count: int) -> list[int]:
    """`count` timesteps of a part, evenly strided, rising from 0 to the last."""
    most = part.config["diffusion"]["num_steps"]
    checks.integer("timesteps", count, 2, most)
    return schedule.strided_timesteps(most, count)[::-1].tolist()


def square_epsilon(
    model: UnCLIP,
    kind: str,
    prompts: Sequence[str],
    embeddings: np.ndarray,
    images: np.ndarray | None,
    timesteps: Sequence[int],
    seed: int = 0,
    first: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Mean square of the epsilon that a part predicts of examples, without guidance.

    Args:
      model: has the part, and a CLIP.
      kind: "prior" or "decoder".
      prompts: N captions.
      embeddings: raw image embeddings (N, D).
      images: uint8 (N, s, s, 3), s = draw_size; the prior does not look at them.
      timesteps: n integers.
      seed, first: example i is noised from (seed, first + i).
      progress: as for UnCLIP's methods.

    Returns:
      float32 (N, n); see diffusion.analytic.

    Raises:
      UsageError, FileNotFoundError: rows that do not fit, a part that is not there
        or predicts what is not finite.
    """
    function = {"prior": embedding_errors, "decoder": image_errors}[kind]
    where = tuple(map(int, timesteps))

    def estimate(*arrays):
        return model.pipeline.run_steps(
            *(function, kind, len(where), on_step(progress)), *arrays, timesteps=where
        )

    examples = prompts, embeddings, images
    errors = _map_examples(model, kind, estimate, examples, seed, first, progress)
    if not np.isfinite(errors).all():
        raise UsageError(f"the {kind}'s epsilon is not finite at some timesteps")
    return errors


def bits_per_dim(
    model: UnCLIP,
    prompts: Sequence[str],
    embeddings: np.ndarray,
    images: np.ndarray,
    seed: int = 0,
    first: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """The decoder's variational bound of images in bits per dimension (IDDPM, eq. 3).

    Without guidance, one draw of x_t at every timestep of training.

    Args: as for `square_epsilon`.

    Returns:
      float32 (N,): upper bounds of -log2 P(image | caption, embedding) per dimension.
    """
    pipeline = model.pipeline
    count = sampling.schedule_of(pipeline.stack.part("decoder")).num_steps

    def estimate(clip_image, tokens, images, *arrays):
        arrays = clip_image, tokens, images, *arrays
        loop = "decoder", count, on_step(progress)
        terms = pipeline.run_steps(image_bits, *loop, *arrays)
        return pipeline.run(finish_bits, "decoder", images, terms)

    examples = prompts, embeddings, images
    return _map_examples(model, "decoder", estimate, examples, seed, first, progress)


def _map_examples(model, kind, function, examples, seed, first, progress):
    """`function` over batches of (prompts, embeddings, images), checked."""
    pipeline, (prompts, embeddings, images) = model.pipeline, examples
    module = pipeline.stack.part(kind).module
    embeddings = checks.embeddings(embeddings, module.embed_dim)
    rows = [embeddings, model.tokenize(prompts)]
    if kind == "decoder":
        rows.append(checks.images(images, model.draw_size, "the decoder"))
    indices = np.arange(first, first + len(embeddings), dtype=np.int32)
    seed = np.uint32(seed)

    def estimate(rows, indices):
        tokens = rows[1]
        caption = pipeline.encode_text(tokens), pipeline.encode_states(kind, tokens)
        return function(*rows, caption, seed, indices)

    return pipeline.map(estimate, (tuple(rows), indices), progress)


def embedding_errors(
    prior: Component,
    params,
    piece: sampling.Piece | None,
    clip_image,
    tokens,
    caption,
    seed,
    indices,
    *,
    timesteps: tuple[int, ...],
):
    """(B, n) of raw image embeddings (B, D), by the prior; others as pipeline's."""
    x_0 = prior.module.apply({"params": params}, clip_image, method="normalize")
    model, condition = prior_sampling.prior_model(prior, params), (tokens, *caption)
    return _estimate(prior, piece, model, condition, x_0, seed, indices, timesteps)


def image_errors(
    decoder: Component,
    params,
    piece: sampling.Piece | None,
    clip_image,
    tokens,
    images,
    caption,
    seed,
    indices,
    *,
    timesteps: tuple[int, ...],
):
    """(B, n) of images uint8 (B, S, S, 3), by the decoder; others as sampling's."""
    model, condition = _decoding(decoder, params, clip_image, tokens, caption)
    x_0 = process.from_uint8(images)
    return _estimate(decoder, piece, model, condition, x_0, seed, indices, timesteps)


def image_bits(
    decoder: Component,
    params,
    piece: sampling.Piece | None,
    clip_image,
    tokens,
    images,
    caption,
    seed,
    indices,
):
    """(B, T) terms of images uint8 (B, S, S, 3); others as sampling's."""
    model, condition = _decoding(decoder, params, clip_image, tokens, caption)
    x_0 = process.from_uint8(images)
    predict = _predictor(decoder, model, condition, len(x_0), clip=1.0)
    keys = sampling.fold_keys(seed, indices, BITS)
    sched, run = sampling.schedule_of(decoder), sampling.runner(piece)
    return bound.vlb_terms(predict, sched, x_0, keys, run)


def finish_bits(decoder: Component, params, images, terms):
    """(B,) bits per dimension of images and their terms."""
    del params
    x_0 = process.from_uint8(images)
    return bound.prior_bits(sampling.schedule_of(decoder), x_0) + terms.T.sum(0)


def _decoding(decoder, params, clip_image, tokens, caption):
    """The decoder as a model, and its condition."""
    if decoder.module.caption != "clip_states":
        caption = None, None
    null = jnp.zeros(len(clip_image), bool)
    model = sampling.decoder_model(decoder, params)
    return model, (clip_image, null, tokens, caption)


def _predictor(part, model, condition, rows, clip=None):
    """(x_t, t) -> process.Prediction, without guidance."""
    sched, kind = sampling.schedule_of(part), part.config["diffusion"]["prediction"]
    drop = jnp.zeros(rows, bool)
    return lambda x, t: process.interpret(
        sched, kind, x, t, model(x, t, condition, drop), clip
    )


def _estimate(part, piece, model, condition, x_0, seed, indices, timesteps):
    predict = _predictor(part, model, condition, len(x_0))
    keys = sampling.fold_keys(seed, indices, ESTIMATE)
    sched, run = sampling.schedule_of(part), sampling.runner(piece)
    return analytic.square_epsilon(predict, sched, x_0, timesteps, keys, run)
