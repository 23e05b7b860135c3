"""How large the noise is that a part predicts: what analytic variance is made from."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import analytic, process, schedule
from unclip_jax.generation import checks, prior_sampling, sampling
from unclip_jax.generation.unclip import UnCLIP
from unclip_jax.interop.components import Component
from unclip_jax.progress import Progress

ESTIMATE = 3  # the stream of randomness, beside those of pipeline


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
      ValueError, FileNotFoundError: rows that do not fit, a part that is not there
        or predicts what is not finite.
    """
    engine = model.engine
    module = engine.stack.part(kind).module
    embeddings = checks.embeddings(embeddings, module.embed_dim)
    rows = [embeddings, model.tokenize(prompts)]
    if kind == "decoder":
        rows.append(checks.images(images, model.draw_size, "the decoder"))
    indices = np.arange(first, first + len(embeddings), dtype=np.int32)
    encode = engine.program(sampling.encode_text, "clip")
    states = engine.program(sampling.text_states, "clip")
    run = engine.program(
        {"prior": of_embeddings, "decoder": of_images}[kind],
        kind,
        timesteps=tuple(map(int, timesteps)),
        report=engine.listening(progress),
    )
    on_states, seed = module.caption == "clip_states", np.uint32(seed)

    def estimate(clip, params, rows, indices):
        text = encode(clip, rows[1])
        caption = text, states(clip, rows[1]) if on_states else None
        return run(params, *rows, caption, seed, indices)

    arrays = tuple(rows), indices
    found = engine.map(estimate, ("clip", kind), arrays, progress)
    if not np.isfinite(found).all():
        raise ValueError(f"the {kind}'s epsilon is not finite at some timesteps")
    return found


def of_embeddings(
    prior: Component,
    params,
    clip_image,
    tokens,
    caption,
    seed,
    indices,
    *,
    timesteps: tuple[int, ...],
    report: Callable | None = None,
):
    """(B, n) of raw image embeddings (B, D), by the prior; others as pipeline's."""
    x_0 = prior.module.apply({"params": params}, clip_image, method="normalize")
    model, condition = prior_sampling.prior_model(prior, params), (tokens, *caption)
    return _estimate(prior, model, condition, x_0, seed, indices, timesteps, report)


def of_images(
    decoder: Component,
    params,
    clip_image,
    tokens,
    images,
    caption,
    seed,
    indices,
    *,
    timesteps: tuple[int, ...],
    report: Callable | None = None,
):
    """(B, n) of pictures uint8 (B, S, S, 3), by the decoder; others as pipeline's."""
    x_0 = process.from_uint8(images)
    if decoder.module.caption != "clip_states":
        caption = None, None
    null = jnp.zeros(len(images), bool)
    model = sampling.decoder_model(decoder, params)
    condition = clip_image, null, tokens, caption
    return _estimate(decoder, model, condition, x_0, seed, indices, timesteps, report)


def _estimate(part, model, condition, x_0, seed, indices, timesteps, report):
    sched = sampling.schedule_of(part)
    kind, drop = part.config["diffusion"]["prediction"], jnp.zeros(len(x_0), bool)

    def predict(x, t):
        output = model(x, t, condition, drop)
        return process.interpret(sched, kind, x, t, output, None)

    predict = sampling.reported(predict, timesteps, report, part.kind)
    keys = sampling.keys_of(seed, indices, ESTIMATE)
    return analytic.square_epsilon(predict, sched, x_0, timesteps, keys)
