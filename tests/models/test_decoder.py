"""The decoder on a frozen CLIP's text states (Karlo's form), on tiny random weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_variables
from unclip_jax import models
from unclip_jax.diffusion import guidance
from unclip_jax.models import clip_caption

EOT = 30
FIELDS = {
    "image_size": 8,
    "channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "head_channels": 8,
    "norm_groups": 4,
    "embed_dim": 12,
    "vocab_size": 31,
    "context_length": 8,
    "eot_id": EOT,
    "caption": "clip_states",
    "text_states_width": 10,
    "text_width": 16,
}
RNG = np.random.default_rng(0)
TOKENS = jnp.array([[29, 3, 5, EOT] + [EOT] * 4, [29, 7, 8, 9, 2, EOT, EOT, EOT]])
NAMES = ("x_t", "t", "clip_image", "tokens", "clip_text", "text_states")
NO, YES = jnp.zeros(2, bool), jnp.ones(2, bool)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


@pytest.fixture(scope="module")
def decoder():
    """(call(inputs, drop_clip, drop_text), inputs, what "" is)."""
    model = models.build("decoder", FIELDS)
    inputs = {
        "x_t": normal(2, 8, 8, 3),
        "t": jnp.array([3, 900]),
        "clip_image": normal(2, 12),
        "tokens": TOKENS,
        "clip_text": normal(2, 12),
        "text_states": normal(2, 8, 10),
    }
    drops = {"drop_clip": NO, "drop_text": NO}
    params = random_variables(model, **inputs, **drops)["params"]
    empty = normal(8, 10), normal(12)
    params = clip_caption.with_empty_caption(params, *empty)
    apply = jax.jit(model.apply)

    def call(inputs, drop_clip=NO, drop_text=NO):
        return apply(
            {"params": params}, **inputs, drop_clip=drop_clip, drop_text=drop_text
        )

    return call, inputs, empty


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_input_acts_on_its_own_row(decoder, name):
    call, inputs, _ = decoder
    value = inputs[name]
    # another end of the caption shows the states behind it
    other = value.at[0, 3].set(12) if name == "tokens" else value.at[0].add(1)
    change = call({**inputs, name: other}) - call(inputs)
    changed = np.abs(change).max((1, 2, 3))
    assert changed[0] > 1e-3 and changed[1] == 0


@pytest.mark.slow
def test_dropping_the_caption_shows_the_empty_one(decoder):
    """Bit for bit what CLIP's states and embedding of "" give, with their mask."""
    call, inputs, (states, clip_text) = decoder
    given = {
        **inputs,
        "tokens": jnp.full((2, 8), EOT).at[:, 0].set(29),
        "text_states": jnp.stack([states] * 2),
        "clip_text": jnp.stack([clip_text] * 2),
    }
    dropped = call(inputs, drop_text=YES)
    np.testing.assert_array_equal(dropped, call(given))
    assert np.abs(dropped - call(inputs)).max() > 1e-3
    far = given["text_states"].at[:, 2:].add(1)  # two tokens of "" are seen, no more
    np.testing.assert_array_equal(dropped, call({**given, "text_states": far}))


def test_dropping_both_is_the_null_path(decoder):
    call, inputs, _ = decoder
    null = call(inputs, YES, YES)
    other = {
        name: inputs[name] + 1 for name in ("clip_image", "clip_text", "text_states")
    }
    np.testing.assert_array_equal(null, call({**inputs, **other}, YES, YES))
    for drops in ((YES, NO), (NO, YES), (NO, NO)):
        assert np.abs(call(inputs, *drops) - null).max() > 1e-3
    assert null.shape == (2, 8, 8, 6)


@pytest.mark.slow
def test_guidance_of_one_is_the_conditional_model(decoder):
    call, inputs, _ = decoder
    rest = {k: v for k, v in inputs.items() if k not in ("x_t", "t")}

    def model(x, t, condition, drop):
        return call({"x_t": x, "t": t, **condition}, drop, drop)

    x, t = inputs["x_t"], inputs["t"]
    expected = call(inputs)
    for scale in (1, jnp.float32(1)):
        guided = guidance.classifier_free(model, rest, scale)(x, t)
        np.testing.assert_allclose(guided, expected, atol=1e-6)
    far = guidance.classifier_free(model, rest, 3.0)(x, t)
    assert np.abs(far - expected)[..., :3].max() > 1e-3
    np.testing.assert_allclose(far[..., 3:], expected[..., 3:], atol=1e-6)


def test_no_gradient_reaches_the_empty_caption():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, states, clip_text, drop):
            empty = clip_caption.make_empty_caption(self, 8, 10, 12)
            shown = clip_caption.drop_clip_captions(states, clip_text, drop, empty)
            return sum(jnp.square(nn.Dense(1)(a)).sum() for a in shown)

    inputs = normal(2, 8, 10), normal(2, 12), YES
    variables = random_variables(Model(), *inputs)
    assert variables["params"]["empty_text_states"].shape == (8, 10)
    grad = jax.jit(jax.grad(lambda v: Model().apply(v, *inputs)))(variables)["params"]
    assert np.abs(grad["Dense_0"]["kernel"]).max() > 0
    for name in clip_caption.EMPTY_CAPTION:
        assert np.abs(grad[name]).max() == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"caption": "states"}, "'states', expected one of tokens, clip_states"),
        ({"caption": "tokens"}, "text_depth and text_heads must be given"),
        ({}, "needs text_states and clip_text"),
    ],
)
def test_what_does_not_fit_is_refused(decoder, changes, message):
    _, inputs, _ = decoder
    model = models.build("decoder", {**FIELDS, **changes})
    inputs = [inputs[name] for name in NAMES[:4]]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), *inputs, NO, NO)
