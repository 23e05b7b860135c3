"""The autoregressive prior: what each logit may see, and drawing with the cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax import models
from unclip_jax.models import codebook
from unclip_jax.models.ar_sampling import sample, truncate

RNG = np.random.default_rng(0)
EOT, K, N = 30, 5, 8
FIELDS = {
    "embed_dim": 6,
    "vocab_size": 31,
    "context_length": 8,
    "eot_id": EOT,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "context": K + 5,  # four slots, of two tokens each
    "text_width": 8,
    "text_depth": 1,
    "text_heads": 2,
    "num_components": K,
    "num_buckets": N,
}
TOKENS = jnp.array([[29, 3, 5, EOT] + [EOT] * 4, [29, 7, 8, 9, 2, EOT, EOT, EOT]])
IMAGE = jnp.asarray(RNG.standard_normal((2, 6)), jnp.float32)
TEXT = jnp.asarray(RNG.standard_normal((2, 6)), jnp.float32)
CODES = jnp.asarray(RNG.integers(0, N, (2, 1 + K)), jnp.int32)
NO, YES = jnp.zeros(2, bool), jnp.ones(2, bool)
KEYS = jax.random.split(jax.random.key(7), 2)


def make(**changes):
    """(module, params) with weights large enough that every condition shows."""
    module = models.build("ar_prior", {**FIELDS, **changes})
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGE, TOKENS, TEXT, NO)
    rng = np.random.default_rng(1)

    def draw(shape):
        return rng.normal(size=shape.shape, scale=0.5).astype(np.float32)

    params = jax.tree.map(draw, shapes["params"])
    params["space"] = {"mean": np.full(6, 0.1), "std": np.full(6, 1.5)}
    z = rng.standard_normal((500, 6))
    params["codebook"] = codebook.fit(z, rng.uniform(-1, 1, 500), K, N)
    return module, params


@pytest.fixture(scope="module")
def prior():
    return make()


@pytest.fixture(scope="module")
def predict(prior):
    """(codes, tokens, text, drop) -> the logits of the whole sequence at once."""
    module, params = prior
    call = jax.jit(lambda *x: module.apply({"params": params}, *x, method="predict"))
    return lambda *inputs: np.asarray(call(*inputs))


@pytest.fixture(scope="module")
def whole(predict):
    return predict(CODES, TOKENS, TEXT, NO)


def differs(a, b):
    """(K,) bool: at which components."""
    return np.abs(a - b).max(axis=(0, 2)) > 1e-4


def test_a_component_sees_those_before_it(predict, whole):
    assert whole.shape == (2, K, N) and whole.dtype == np.float32
    for j in range(1 + K):  # 0 is the dot product, which all of them see
        moved = predict(CODES.at[:, j].set((CODES[:, j] + 3) % N), TOKENS, TEXT, NO)
        np.testing.assert_array_equal(differs(moved, whole), np.arange(1, 1 + K) > j)


def test_training_predicts_the_codes_of_the_embedding(prior, predict):
    module, params = prior
    logits, codes = jax.jit(module.apply)({"params": params}, IMAGE, TOKENS, TEXT, NO)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (IMAGE, TEXT)]
    book = params["codebook"]
    dots = (unit[0] * unit[1]).sum(1)
    values = ((IMAGE - 0.1) / 1.5 - book["mean"]) @ book["components"]
    values = np.concatenate([dots[:, None], values], axis=1)
    expected = (values[..., None] > book["edges"]).sum(-1)
    np.testing.assert_array_equal(codes, expected[:, 1:])
    same = predict(jnp.asarray(expected), TOKENS, TEXT, NO)
    np.testing.assert_allclose(logits, same, atol=1e-5)


def test_certain_logits_expect_what_the_codes_decode_to(prior):
    module, params = prior
    apply = functools.partial(module.apply, {"params": params})
    decoded = apply(CODES[:, 1:], method="decode")
    certain = 100.0 * jax.nn.one_hot(CODES[:, 1:], N)
    np.testing.assert_allclose(apply(certain, method="expected"), decoded, atol=1e-5)


def test_every_condition_reaches_every_component(predict, whole):
    assert differs(predict(CODES, TOKENS.at[:, 2].set(11), TEXT, NO), whole).all()
    assert differs(predict(CODES, TOKENS, TEXT + 0.1, NO), whole).all()
    dropped = predict(CODES, TOKENS, TEXT, YES)
    assert differs(dropped, whole).all()
    np.testing.assert_allclose(
        predict(CODES, TOKENS[::-1], -TEXT, YES), dropped, atol=1e-5
    )


def test_padding_is_not_seen(predict, whole):
    padded = TOKENS.at[:, 6:].set(5)
    np.testing.assert_allclose(predict(CODES, padded, TEXT, NO), whole, atol=1e-5)


@pytest.mark.parametrize(
    "length, slots, joined", [(8, 12, 1), (8, 8, 1), (8, 4, 2), (7, 3, 3), (256, 64, 4)]
)
def test_caption_tokens_are_joined_until_they_fit(length, slots, joined):
    fields = {"context_length": length, "context": slots + 1 + K}
    module = models.build("ar_prior", {**FIELDS, **fields})
    tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
    inputs = jax.random.key(0), IMAGE, tokens, TEXT, NO
    (logits, _), variables = jax.eval_shape(module.init_with_output, *inputs)
    assert logits.shape == (2, K, N)
    assert variables["params"]["text_in"]["kernel"].shape == (joined * 8, 16)


def test_a_context_without_room_for_text_is_refused():
    module = models.build("ar_prior", {**FIELDS, "context": K + 1})
    with pytest.raises(ValueError, match=f"context {K + 1}: expected at least {K + 2}"):
        jax.eval_shape(module.init, jax.random.key(0), IMAGE, TOKENS, TEXT, NO)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_cached_steps_equal_the_whole_sequence(prior, scan_layers, whole):
    module, params = prior
    if scan_layers:
        module = dataclasses.replace(module, scan_layers=True, remat="full")
        params = dict(params)
        params["transformer"], params["text"] = map(
            stacked, (params["transformer"], params["text"])
        )

    @jax.jit
    def step_by_step(params):
        def apply(cache, *inputs, method):
            variables = {"params": params, **cache}
            return module.apply(variables, *inputs, method=method, mutable=["cache"])

        inputs = TOKENS, TEXT, CODES[:, 0], NO
        (first, visible), cache = apply({}, *inputs, method="start")
        found = [first]
        for i in range(1, K):
            inputs = CODES[:, i], i, visible
            out, cache = apply(cache, *inputs, method="step")
            found.append(out)
        return jnp.stack(found, axis=1)

    np.testing.assert_allclose(step_by_step(params), whole, atol=1e-5)


def stacked(tree):
    """block_0, block_1, ... of a transformer as scan_layers keeps them."""
    if "transformer" in tree:
        return {**tree, "transformer": stacked(tree["transformer"])}
    return {"blocks": jax.tree.map(lambda *x: np.stack(x), *tree.values())}


@pytest.fixture(scope="module")
def draw(prior):
    module, params = prior

    def run(tokens, text, keys, **options):
        return sample(module, params, tokens, text, keys, **options)

    jitted = jax.jit(run)
    return lambda *inputs, **options: np.asarray(jitted(*inputs, **options))


@pytest.mark.slow
def test_greedy_draws_take_the_likeliest_of_the_whole_forward(prior, draw, predict):
    """No cache on the other side: the sequence so far goes through all of the model."""
    options = {"scale": 1.7, "temperature": 0.0, "dot_quantile": 0.999}
    found = draw(TOKENS, TEXT, KEYS, **options)
    codes = np.full((2, 1 + K), N - 1)  # the dot product in its highest bucket
    for i in range(1, 1 + K):
        given = jnp.asarray(codes, jnp.int32)
        cond, uncond = (predict(given, TOKENS, TEXT, drop) for drop in (NO, YES))
        codes[:, i] = (uncond + 1.7 * (cond - uncond))[:, i - 1].argmax(-1)
    np.testing.assert_array_equal(found, codes[:, 1:])


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch(draw):
    both = draw(TOKENS, TEXT, KEYS)
    alone = draw(TOKENS[1:], TEXT[1:], KEYS[1:])
    np.testing.assert_array_equal(both[1:], alone)
    assert (draw(TOKENS, TEXT, KEYS[::-1]) != both).any()


@pytest.mark.slow
def test_draws_follow_the_model(prior):
    """The first component's frequencies, over the draws of the dot product."""
    module, params = prior
    n = 4000
    many = [jnp.repeat(x[:1], n, 0) for x in (TOKENS, TEXT)]
    keys = jax.random.split(jax.random.key(3), n)
    run = jax.jit(lambda: sample(module, params, *many, keys, guided=False)[:, 0])
    found = np.bincount(np.asarray(run()), minlength=N) / n

    def first(code):
        state = {"params": params}
        inputs = TOKENS[:1], TEXT[:1], jnp.full(1, code), NO[:1]
        out, _ = module.apply(state, *inputs, method="start", mutable=["cache"])
        return jax.nn.softmax(out[0][0])

    # eight buckets of equal mass, of which the upper four are drawn from
    expected = np.asarray(jax.jit(jax.vmap(first))(jnp.arange(4, 8))).mean(0)
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / n))


def test_truncation_keeps_the_likeliest():
    odds = np.array([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01]])
    logits = jnp.log(odds)

    def kept(temperature, k, p):
        return np.isfinite(truncate(logits, temperature, k, p)).tolist()

    top = [True, False, False, False]
    assert kept(1.0, 0, 1.0) == [[True] * 4] * 2
    assert kept(1.0, 1, 1.0) == [[False, True, False, False], top]
    assert kept(1.0, 0, 0.65) == [[False, True, False, True], top]
    assert kept(1.0, 0, 1e-9) == [[False, True, False, False], top]
    # of the two likeliest, 0.4 / 0.7 is more than a half
    assert kept(1.0, 2, 0.5) == [[False, True, False, False], top]
    assert kept(100.0, 0, 0.8)[0].count(True) == 4  # nearly flat
