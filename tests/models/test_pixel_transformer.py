"""The transformer over patches, against NumPy in float64, and as a decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_variables
from unclip_jax import models
from unclip_jax.models.pixel_transformer import PixelTransformer

FIELDS = {
    "image_size": 8,
    "out_channels": 3,
    "patch_size": 4,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
}
RNG = np.random.default_rng(0)
MASK = np.array([[True, True, False], [True, False, False]])


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def inputs():
    return normal(2, 8, 8, 3), np.array([3, 900]), normal(2, 16), normal(2, 3, 10), MASK


@pytest.fixture(scope="module")
def variables(inputs):
    return random_variables(PixelTransformer(**FIELDS), *inputs)


def reference(params, x, t, emb, context, mask):
    """One example in float64, its rotary positions as complex numbers."""

    def dense(name, y, p=params):
        return y @ p[name]["kernel"].astype(float) + p[name]["bias"]

    silu = lambda y: y / (1 + np.exp(-y))  # noqa: E731
    rms = lambda y: y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)  # noqa: E731
    angles = t * 10_000.0 ** -(np.arange(8) / 8)
    time = np.concatenate([np.cos(angles), np.sin(angles)])
    time = silu(dense("time_2", silu(dense("time_1", time))) + emb)
    patches = [x[i : i + 4, j : j + 4].ravel() for i in (0, 4) for j in (0, 4)]
    h = np.concatenate(
        [dense("context_in", context), dense("patches_in", np.array(patches))]
    )
    turns = np.ones((len(h), 4), complex)  # per pair of a head's 8 numbers
    for n, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        turns[3 + n] = np.exp(1j * np.array([row, row / 10, column, column / 10]))
    seen = np.append(mask, [True] * 4)
    shared = dense("modulation", time).reshape(6, 16)
    for i in range(2):
        p = params[f"block_{i}"]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = shared + p["modulation"]
        y = rms(h) * (1 + scale_1) + shift_1
        q, k, v = (dense(name, y, p) for name in "qkv")
        heads = []
        for part in (slice(0, 8), slice(8, 16)):
            a, b = (
                rms(z[:, part]) * p[f"{name}_scale"] for name, z in (("q", q), ("k", k))
            )
            a, b = ((z[:, :4] + 1j * z[:, 4:]) * turns for z in (a, b))
            logits = (a @ b.conj().T).real / np.sqrt(8)
            weights = np.exp(logits) * seen
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
        h = h + gate_1 * dense("out", np.concatenate(heads, 1), p)
        gate, y = np.split(dense("fc_1", rms(h) * (1 + scale_2) + shift_2, p), 2, 1)
        h = h + gate_2 * dense("fc_2", silu(gate) * y, p)
    shift, scale = np.split(dense("modulation_out", time), 2)
    h = dense("patches_out", rms(h[3:]) * (1 + scale) + shift)
    rows = [
        np.concatenate([p.reshape(4, 4, 3) for p in pair], 1) for pair in (h[:2], h[2:])
    ]
    return np.concatenate(rows)


@pytest.mark.slow
@pytest.mark.parametrize("form", [{}, {"scan_layers": True, "remat": True}])
def test_equals_numpy(variables, inputs, form):
    params = variables["params"]
    if form:
        blocks = [params[f"block_{i}"] for i in range(2)]
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *blocks)
        rest = {k: v for k, v in params.items() if not k.startswith("block_")}
        variables = {"params": {**rest, "blocks": stacked}}
    model = PixelTransformer(**FIELDS, **form)
    ours = jax.jit(model.apply)(variables, *inputs)
    rows = zip(*inputs, strict=True)
    expected = np.stack([reference(params, *row) for row in rows])
    np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_starts_by_predicting_nothing(inputs):
    """Zero gates and a zero last layer, as diffusion transformers begin."""
    model = PixelTransformer(**FIELDS)
    variables = jax.jit(model.init)(jax.random.key(0), *inputs)
    assert not np.any(jax.jit(model.apply)(variables, *inputs))


def test_heads_that_cannot_be_turned_are_refused(inputs):
    with pytest.raises(ValueError, match="width 16 does not divide into 8 heads"):
        random_variables(PixelTransformer(**{**FIELDS, "num_heads": 8}), *inputs)


DECODER = {
    "backbone": "transformer",
    "image_size": 8,
    "patch_size": 4,
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "embed_dim": 12,
    "vocab_size": 31,
    "context_length": 8,
    "eot_id": 30,
    "text_width": 16,
    "text_depth": 1,
    "text_heads": 2,
}


@pytest.mark.slow
def test_is_a_decoder_that_sees_embedding_and_caption():
    model = models.build("decoder", DECODER)
    tokens = jnp.array([[29, 3, 5, 30] + [30] * 4] * 2)
    no, yes = jnp.zeros(2, bool), jnp.ones(2, bool)
    x, t, z = normal(2, 8, 8, 3), jnp.array([3, 900]), normal(2, 12)
    variables = random_variables(model, x, t, z, tokens, no, no)
    apply = jax.jit(model.apply)
    out = apply(variables, x, t, z, tokens, no, no)
    assert out.shape == (2, 8, 8, 3) and out.dtype == jnp.float32
    for other in (
        (x, t, z + 1, tokens, no, no),
        (x, t, z, tokens.at[:, 1].set(7), no, no),
        (x, t + 50, z, tokens, no, no),
        (x, t, z, tokens, yes, no),
        (x, t, z, tokens, no, yes),
    ):
        assert np.abs(apply(variables, *other) - out).max() > 1e-4
    null = apply(variables, x, t, z, tokens, yes, yes)
    same = apply(variables, x, t, z + 1, tokens.at[:, 1].set(7), yes, yes)
    np.testing.assert_array_equal(null, same)


def test_an_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="backbone 'mlp': expected one of unet, trans"):
        models.build("decoder", {**DECODER, "backbone": "mlp"})
