"""Norms and activations with gradients of our own, against plain definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.models import layers, norms


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain_layer_norm(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def plain_group_norm(x, scale, shift, groups=4):
    b, h, w, c = x.shape
    grouped = x.reshape(b, h, w, groups, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    var = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
    y = ((grouped - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)
    return y * scale[:, None, None] + shift[:, None, None]


CASES = {
    "layer_norm": (
        lambda x, s, b: norms.layer_norm(x, s, b, 1e-5),
        plain_layer_norm,
        (normal(3, 5, 48) + 2, normal(48, seed=1), normal(48, seed=2)),
    ),
    "group_norm": (
        lambda x, s, b: norms.group_norm(x, s, b, 4, 1e-5),
        plain_group_norm,
        (normal(3, 6, 4, 8) + 2, normal(3, 8, seed=1), normal(3, 8, seed=2)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_norms_and_their_gradients_are_those_of_the_definition(name):
    """Against automatic differentiation in float64, within 1e-5 of the largest."""
    ours, plain, inputs = CASES[name]
    g = normal(*inputs[0].shape, seed=3)
    y, pull = jax.jit(lambda *args: jax.vjp(ours, *args))(*inputs)
    with jax.enable_x64():
        wide = [np.asarray(a, np.float64) for a in (*inputs, g)]
        expected, wide_pull = jax.vjp(plain, *map(jnp.asarray, wide[:-1]))
        wanted = [expected, *wide_pull(jnp.asarray(wide[-1]))]
    for found, exact in zip([y, *pull(g)], wanted, strict=True):
        exact = np.asarray(exact)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("name", CASES)
def test_half_precision_neither_overflows_nor_loses_small_differences(name):
    """float16, whose squares end at 6.5e4: of 2e4, and of 1e-3 around 0; 1e-3."""
    ours, plain, (x, *rest) = CASES[name]
    for scale in (1e4, 1e-3):
        half = jnp.asarray(scale * (x - 2), jnp.float16)
        value, grads = jax.value_and_grad(lambda a, f=ours: f(a, *rest).sum())(half)
        expected = plain(half.astype(jnp.float32), *rest)
        np.testing.assert_allclose(ours(half, *rest), expected, atol=1e-3)
        assert np.isfinite(value) and np.isfinite(np.asarray(grads, np.float32)).all()


@pytest.mark.parametrize("name", CASES)
def test_gradients_have_the_type_of_what_was_normalized(name):
    ours, _, (x, scale, bias) = CASES[name]
    x = jnp.asarray(x, jnp.bfloat16)
    grads = jax.jit(jax.grad(lambda *a: jnp.square(ours(*a)).sum(), (0, 1, 2)))
    kinds = [leaf.dtype for leaf in grads(x, scale, bias)]
    assert kinds == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_gelu_is_torchs():
    """Values and derivatives, within 1e-6: 1 + erf is rounded, and multiplied by x."""
    torch = pytest.importorskip("torch")
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    there = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    out = torch.nn.functional.gelu(there)
    out.sum().backward()
    np.testing.assert_allclose(layers.gelu(x), out.detach().numpy(), atol=1e-6)
    slope = jax.jit(jax.vmap(jax.grad(layers.gelu)))(x)
    np.testing.assert_allclose(slope, there.grad.numpy(), atol=1e-6)


def test_gelu_of_bfloat16_is_rounded_once():
    x = jnp.linspace(-4, 4, 257, dtype=jnp.bfloat16)
    found = jax.jit(layers.gelu)(x)
    assert found.dtype == jnp.bfloat16
    exact = layers.gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found, exact)
