"""What every model must do, on tiny random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_variables
from unclip_jax import models
from unclip_jax.models import clip_caption, layers, text_transformer, unet

EOT = 30
TEXT = {"vocab_size": 31, "context_length": 8, "eot_id": EOT}
RNG = np.random.default_rng(0)
TOKENS = jnp.array([[29, 3, 5, EOT] + [EOT] * 4, [29, 7, 8, 9, 2, EOT, EOT, EOT]])
NO, YES = jnp.zeros(2, bool), jnp.ones(2, bool)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def changed_first_row(x):
    """x with row 0 changed: another token, or another value everywhere."""
    return x.at[0, 1].set(12) if x is TOKENS else x.at[0].add(1)


@pytest.fixture(scope="module")
def clip():
    fields = {
        "embed_dim": 12,
        "image_size": 8,
        "patch_size": 4,
        "vision_width": 16,
        "vision_depth": 2,
        "vision_heads": 2,
        "text_width": 16,
        "text_depth": 2,
        "text_heads": 2,
    }
    model = models.build("clip", {**fields, **TEXT})
    images = jnp.asarray(RNG.integers(0, 256, (2, 8, 8, 3)), jnp.uint8)
    return model, random_variables(model, images, TOKENS), images


@pytest.fixture(scope="module")
def prior():
    fields = {"embed_dim": 12, "width": 16, "depth": 2, "num_heads": 2}
    model = models.build("prior", {**fields, **TEXT})
    inputs = (normal(2, 12), jnp.array([3, 900]), TOKENS, normal(2, 12))
    return jax.jit(model.apply), random_variables(model, *inputs, NO), inputs


@pytest.fixture(scope="module")
def karlo():
    """The prior of the form "clip_states", with the empty caption filled in."""
    fields = {"embed_dim": 12, "width": 16, "depth": 2, "num_heads": 2}
    model = models.build(
        "prior", {**fields, **TEXT, "caption": "clip_states", "text_width": 10}
    )
    inputs = (normal(2, 12), jnp.array([3, 900]), TOKENS, normal(2, 12))
    states, empty = normal(2, 8, 10), (normal(8, 10), normal(12))
    params = random_variables(model, *inputs, NO, states)["params"]
    params = clip_caption.with_empty_caption(params, *empty)
    return jax.jit(model.apply), {"params": params}, inputs, states, empty


@pytest.fixture(scope="module")
def decoder():
    fields = {
        "image_size": 16,
        "channels": 16,
        "channel_mult": (1, 2),
        "num_res_blocks": (1, 1),
        "attention_resolutions": (4,),
        "head_channels": 8,
        "patch_size": 2,
        "norm_groups": 4,
        "embed_dim": 12,
        "text_width": 16,
        "text_depth": 1,
        "text_heads": 2,
    }
    model = models.build("decoder", {**fields, **TEXT})
    inputs = (normal(2, 16, 16, 3), jnp.array([3, 900]), normal(2, 12), TOKENS)
    return jax.jit(model.apply), random_variables(model, *inputs, NO, NO), inputs


def test_text_mask_ends_with_the_first_end_of_text():
    mask = text_transformer.text_mask(TOKENS, EOT)
    assert mask.sum(-1).tolist() == [4, 6]


def test_dropped_captions_are_the_empty_caption():
    dropped = text_transformer.drop_captions(TOKENS, jnp.array([True, False]), EOT)
    assert dropped[0].tolist() == [29] + [EOT] * 7
    assert dropped[1].tolist() == TOKENS[1].tolist()


def test_clip_text_ignores_what_follows_the_end(clip):
    model, variables, _ = clip
    other = TOKENS.at[0, 5].set(11)
    encode = jax.jit(lambda t: model.apply(variables, t, method="encode_text"))
    np.testing.assert_allclose(encode(TOKENS), encode(other), atol=1e-6)
    changed = encode(TOKENS.at[0, 2].set(11)) - encode(TOKENS)
    assert np.abs(changed[0]).max() > 1e-4 and np.abs(changed[1]).max() == 0


def test_clip_refuses_images_of_another_size(clip):
    model, variables, _ = clip
    with pytest.raises(ValueError, match="8x8x3, got 4x8x3"):
        model.apply(variables, jnp.zeros((1, 4, 8, 3)), method="encode_image")


@pytest.mark.slow
def test_scan_and_remat_change_nothing():
    x, bias = normal(2, 5, 16), layers.causal_bias(5)
    loop = layers.Transformer(3, 2)
    params = random_variables(loop, x, bias)["params"]
    blocks = [params[f"block_{i}"] for i in range(3)]
    stacked = {"blocks": jax.tree.map(lambda *a: np.stack(a), *blocks)}
    scan = layers.Transformer(3, 2, scan_layers=True, remat="full")

    def value_and_grad(model, p):
        fn = lambda p: jnp.square(model.apply({"params": p}, x, bias)).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(fn))(p)

    (a, grad_a), (b, grad_b) = (
        value_and_grad(loop, params),
        value_and_grad(scan, stacked),
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for i in range(3):
        jax.tree.map(
            lambda u, v, i=i: np.testing.assert_allclose(u, v[i], atol=1e-3),
            grad_a[f"block_{i}"],
            grad_b["blocks"],
        )


def test_attention_is_causal():
    x = normal(1, 5, 16)
    model = layers.Transformer(2, 2)
    variables = random_variables(model, x)
    run = jax.jit(lambda x: model.apply(variables, x, layers.causal_bias(5)))
    changed = np.abs(run(x.at[0, 3].add(normal(16))) - run(x))[0].max(-1)
    assert (changed[:3] == 0).all() and (changed[3:] > 1e-3).all()


def test_group_norm_is_flaxs_at_a_large_mean():
    import flax.linen as nn

    x = normal(2, 4, 4, 8) + 100
    scale, shift = normal(2, 8), normal(2, 8)
    ours = layers.GroupNorm(groups=4)
    theirs = nn.GroupNorm(num_groups=4, epsilon=1e-5, use_fast_variance=False)
    variables = ours.init(jax.random.key(0), x)
    expected = theirs.apply(variables, x)
    np.testing.assert_allclose(ours.apply(variables, x), expected, atol=2e-4)
    expected = expected * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(
        ours.apply(variables, x, scale, shift), expected, atol=5e-4
    )


@pytest.mark.parametrize("mean", [0, 4, 16])
def test_group_norm_rounds_to_bfloat16_once(mean):
    """Against numpy in float64, `mean` standard deviations away from 0."""
    x = (normal(2, 8, 8, 16) + mean).astype(jnp.bfloat16)
    scale, shift = normal(2, 16), normal(2, 16)
    params = {"scale": 1 + 0.1 * normal(16), "bias": normal(16)}
    run = jax.jit(layers.GroupNorm(groups=4, dtype=jnp.bfloat16).apply)
    ours = run({"params": params}, x, scale, shift)
    assert ours.dtype == jnp.bfloat16

    wide = np.asarray(x, np.float64).reshape(2, 64, 4, 4)  # pixels, groups, channels
    centered = wide - wide.mean((1, 3), keepdims=True)
    std = np.sqrt(np.square(centered).mean((1, 3), keepdims=True) + 1e-5)
    exact = (centered / std).reshape(2, 8, 8, 16)
    gamma, beta, scale, shift = (
        np.asarray(table, np.float64)
        for table in (params["scale"], params["bias"], scale, shift)
    )
    exact = (exact * gamma + beta) * (1 + scale[:, None, None]) + shift[:, None, None]
    # half a step of bfloat16, and what float32 leaves: 1e-6 of the numbers in between
    step = np.exp2(np.floor(np.log2(np.abs(exact))) - 7)
    assert (np.abs(np.asarray(ours, np.float64) - exact) <= step / 2 + 2e-5).all()


def test_embedding_space_goes_there_and_back():
    raw = normal(3, 12)
    space = layers.EmbeddingSpace(12)
    params = {"mean": normal(12), "std": jnp.abs(normal(12)) + 0.5}
    z = space.apply({"params": params}, raw, method="normalize")
    back = space.apply({"params": params}, z, method="denormalize")
    np.testing.assert_allclose(back, raw, atol=1e-5)


@pytest.mark.parametrize("dim", [512, 768, 1024])
def test_scaled_unit_embeddings_have_imagenets_standard_deviation(dim):
    """The paper's 17.2 at 1024 dimensions: 0.5375 of RGB in [-1, 1]."""
    scale = layers.UNIT_SCALES["unit_scaled"](dim)
    assert (scale == layers.UNIT_SCALES["unit_17.2"](dim) == 17.2) == (dim == 1024)
    space = layers.EmbeddingSpace(dim, unit_norm=True)
    params = {"mean": jnp.zeros(dim), "std": jnp.full(dim, 1 / scale)}
    raw = 3 * np.random.default_rng(0).standard_normal((2000, dim))
    z = space.apply({"params": params}, raw, method="normalize")
    np.testing.assert_allclose(z.std(), 0.5375, rtol=1e-3)
    np.testing.assert_allclose(z.std(axis=0), 0.5375, rtol=0.08)


def test_no_gradient_reaches_the_embedding_space():
    raw, space = normal(3, 12), layers.EmbeddingSpace(12)
    variables = space.init(jax.random.key(0), raw, method="normalize")
    grad = jax.grad(lambda v: space.apply(v, raw, method="normalize").sum())(variables)
    assert all((g == 0).all() for g in jax.tree.leaves(grad))


@pytest.mark.parametrize("which", ["x_t", "t", "tokens", "clip_text"])
def test_every_input_of_the_prior_acts(prior, which):
    call, params, inputs = prior
    i = ("x_t", "t", "tokens", "clip_text").index(which)
    other = [*inputs]
    other[i] = changed_first_row(inputs[i])
    changed = np.abs(call(params, *other, NO) - call(params, *inputs, NO)).max(-1)
    assert changed[0] > 1e-3 and changed[1] == 0


def test_dropping_gives_the_priors_null_path(prior):
    call, params, (x_t, t, tokens, clip_text) = prior
    a = call(params, x_t, t, tokens, clip_text, YES)
    b = call(params, x_t, t, tokens.at[:, 1].set(12), clip_text + 1, YES)
    np.testing.assert_array_equal(a, b)  # neither caption nor embedding is seen
    moved = call(params, x_t + 1, t, tokens, clip_text, YES)
    assert np.abs(moved - a).min() > 0  # but the noised embedding still is


def test_padding_is_invisible_to_the_prior(prior):
    call, params, (x_t, t, tokens, clip_text) = prior
    other = tokens.at[0, 6].set(4)
    np.testing.assert_allclose(
        call(params, x_t, t, other, clip_text, NO),
        call(params, x_t, t, tokens, clip_text, NO),
        atol=1e-6,
    )


def test_every_input_of_a_prior_on_clips_states_acts(karlo):
    call, params, (x_t, t, tokens, clip_text), states, _ = karlo
    out = call(params, x_t, t, tokens, clip_text, NO, states)
    others = {
        "x_t": (x_t.at[0].add(1), t, tokens, clip_text, NO, states),
        "t": (x_t, t.at[0].add(1), tokens, clip_text, NO, states),
        "mask": (x_t, t, tokens.at[0, 3].set(5), clip_text, NO, states),
        "clip_text": (x_t, t, tokens, clip_text.at[0].add(1), NO, states),
        "text_states": (x_t, t, tokens, clip_text, NO, states.at[0, 2].add(1)),
    }
    for name, inputs in others.items():
        change = np.abs(call(params, *inputs) - out).max(-1)
        assert change[0] > 1e-3 and change[1] == 0, name
    padding = states.at[0, 4].add(1)  # row 0 ends at 3
    same = call(params, x_t, t, tokens, clip_text, NO, padding)
    np.testing.assert_allclose(same, out, atol=1e-6)


def test_dropping_on_clips_states_is_the_empty_caption(karlo):
    call, params, (x_t, t, tokens, clip_text), states, (empty, empty_text) = karlo
    dropped = call(params, x_t, t, tokens, clip_text, YES, states)
    text, empties = (jnp.stack([a, a]) for a in (empty_text, empty))
    none = jnp.full_like(tokens, EOT).at[:, 0].set(29)
    expected = call(params, x_t, t, none, text, NO, empties)
    np.testing.assert_allclose(dropped, expected, atol=1e-6)


def test_no_gradient_reaches_the_empty_caption(karlo):
    call, params, inputs, states, _ = karlo
    loss = lambda v: jnp.square(call(v, *inputs, YES, states)).sum()  # noqa: E731
    grads = jax.jit(jax.grad(loss))(params)["params"]
    for name in clip_caption.EMPTY_CAPTION:
        assert not grads[name].any()
    assert np.abs(grads["clip_image_in"]["kernel"]).max() > 0


def test_a_prior_on_clips_states_says_when_it_gets_none(karlo):
    call, params, inputs, _, _ = karlo
    with pytest.raises(ValueError, match="needs text_states"):
        call(params, *inputs, NO)
    with pytest.raises(ValueError, match="caption 'words', expected one of"):
        fields = {"embed_dim": 12, "width": 16, "depth": 2, "num_heads": 2, **TEXT}
        module = models.build("prior", {**fields, "caption": "words"})
        module.init(jax.random.key(0), *inputs, NO)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["x_t", "t", "clip_image", "tokens"])
def test_every_input_of_the_decoder_acts(decoder, which):
    call, params, inputs = decoder
    i = ("x_t", "t", "clip_image", "tokens").index(which)
    other = [*inputs]
    other[i] = changed_first_row(inputs[i])
    change = call(params, *other, NO, NO) - call(params, *inputs, NO, NO)
    changed = np.abs(change).max((1, 2, 3))
    assert changed[0] > 1e-3 and changed[1] == 0


def test_dropping_gives_the_decoders_null_path(decoder):
    call, params, (x_t, t, clip_image, tokens) = decoder
    null = call(params, x_t, t, clip_image, tokens, YES, YES)
    other = call(params, x_t, t, clip_image + 1, tokens.at[:, 1].set(12), YES, YES)
    np.testing.assert_array_equal(null, other)
    only_text = call(params, x_t, t, clip_image, tokens, YES, NO)
    only_clip = call(params, x_t, t, clip_image, tokens, NO, YES)
    for out in (only_text, only_clip):
        assert np.abs(out - null).max() > 1e-3
    assert np.abs(only_text - only_clip).max() > 1e-3
    assert null.shape == (2, 16, 16, 6)  # epsilon and the learned variance


def test_patching_loses_nothing():
    x = normal(2, 8, 8, 3)
    folded = unet.space_to_depth(x, 4)
    assert folded.shape == (2, 2, 2, 48)
    np.testing.assert_array_equal(folded[0, 0, 0, :3], x[0, 0, 0])
    np.testing.assert_array_equal(unet.depth_to_space(folded, 4), x)


def test_a_unet_without_attention_or_context_has_scale_or_shift():
    x = normal(1, 8, 8, 6)
    counts = {}
    for scale_shift in (True, False):
        model = unet.UNet(8, 3, 8, (1, 2), 1, norm_groups=4, scale_shift=scale_shift)
        make = functools.partial(jax.eval_shape, model.init_with_output)
        out, variables = make(jax.random.key(0), x, jnp.zeros(1))
        assert out.shape == (1, 8, 8, 3)
        counts[scale_shift] = sum(p.size for p in jax.tree.leaves(variables))
    assert counts[True] > counts[False]


def test_unknown_fields_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'widht'.*did you mean 'width'"):
        models.build("prior", {"widht": 3})
    with pytest.raises(ValueError, match="'priour'"):
        models.build("priour", {})
