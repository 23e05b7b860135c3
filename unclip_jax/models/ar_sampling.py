"""Drawing image embeddings from the autoregressive prior, component by component."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from unclip_jax.models.ar_prior import AutoregressivePrior
from unclip_jax.shapes import Array, Codes, Embeddings, Tokens


def sample(
    module: AutoregressivePrior,
    params,
    tokens: Tokens,
    clip_text: Embeddings,
    keys,
    *,
    scale=1.0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    dot_quantile=0.5,
    guided: bool = True,
    truncated: bool = True,
) -> Codes:
    """Codes of image embeddings for captions; one scan, with cached keys and values.

    Args:
      module, params: the prior.
      tokens: (B, L) int32.
      clip_text: (B, D) raw text embeddings.
      keys: (B,) PRNG keys; row i depends on keys[i] and its own condition only.
      scale: of classifier-free guidance, on the logits:
        uncond + scale (cond - uncond). Unused unless `guided`.
      temperature: 0 takes the likeliest code.
      top_k, top_p: see `truncate`. Unused unless `truncated`.
      dot_quantile: the dot product's token is drawn from above this quantile of its
        training distribution (the paper found 0.5 best).
      guided, truncated: Python bools that choose the program.

    Returns:
      int32 (B, K); see AutoregressivePrior.decode.
    """
    b = tokens.shape[0]
    variables = {"params": params}

    def apply(method, cache, *inputs):
        state = variables | ({"cache": cache} if cache is not None else {})
        out, changed = module.apply(state, *inputs, method=method, mutable=["cache"])
        return out, changed["cache"]

    def draw(logits, i):
        if guided:
            cond, uncond = jnp.split(logits, 2)
            logits = uncond + scale * (cond - uncond)
        if truncated:
            logits = truncate(logits, temperature, top_k, top_p)
        noise = jax.vmap(lambda k, row: jax.random.gumbel(k, row.shape))
        # the largest of logits / temperature + Gumbel noise is a draw of the softmax
        return (logits + temperature * noise(_fold(keys, 1 + i), logits)).argmax(-1)

    low = jnp.asarray(dot_quantile, jnp.float32)
    quantile = jax.vmap(jax.random.uniform)(_fold(keys, 0))  # (B,)
    dot_code: Any = module.apply(
        variables, low + (1 - low) * quantile, method="dot_code"
    )
    twice = 2 if guided else 1
    rows = [jnp.concatenate([a] * twice) for a in (tokens, clip_text, dot_code)]
    drop = jnp.arange(twice * b) >= b
    (logits, visible), cache = apply("start", None, *rows, drop)

    def body(carry, i):
        cache, logits = carry
        code = draw(logits, i)
        given = jnp.concatenate([code] * twice)
        logits, cache = apply("step", cache, given, i + 1, visible)
        return (cache, logits), code

    last = module.num_components - 1
    (_, logits), codes = jax.lax.scan(body, (cache, logits), jnp.arange(last))
    return jnp.concatenate([codes.T, draw(logits, last)[:, None]], axis=1)


def truncate(
    logits: Float[Array, "batch codes"], temperature, top_k, top_p
) -> Float[Array, "batch codes"]:
    """Sets the logits (B, N) outside of the nucleus to -inf.

    Kept are the `top_k` likeliest (0: all), and of these the fewest that together hold
    the probability `top_p` at this temperature (Holtzman et al. 2020; 1: all).
    """
    n = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)
    kept = jnp.arange(n) < jnp.where(top_k > 0, top_k, n)  # (N,)
    scaled = jnp.where(kept, ordered / jnp.maximum(temperature, 1e-6), -jnp.inf)
    odds = jax.nn.softmax(scaled, axis=-1)
    before = jnp.cumsum(odds, axis=-1) - odds  # what the likelier ones hold
    # the likeliest always stays; rounding must not cut where nothing was asked for
    kept = kept & ((before < top_p) | (top_p >= 1) | (jnp.arange(n) == 0))
    least = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def _fold(keys, i):
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
