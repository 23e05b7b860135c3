"""Counted arithmetic against closed forms and the compiler's own count."""

import jax
import jax.numpy as jnp
import pytest

from unclip_jax.models.unet import UNet
from unclip_jax.training.flops import count_flops


def shape(*size):
    return jax.ShapeDtypeStruct(size, jnp.float32)


def test_matrix_products_and_loops():
    def product(a, b):
        return a @ b

    assert count_flops(product, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7

    def loop(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=11)[0]

    assert count_flops(loop, shape(3, 5), shape(5, 5)) == 11 * 2 * 3 * 5 * 5
    batched = count_flops(jax.vmap(product), shape(4, 3, 5), shape(4, 5, 7))
    assert batched == 4 * 2 * 3 * 5 * 7


def test_a_gradient_costs_twice_the_forward_pass():
    def loss(w, x):
        return jnp.square(jnp.tanh(x @ w[0]) @ w[1]).sum()

    w, x = (shape(8, 16), shape(16, 4)), shape(32, 8)
    forward = count_flops(loss, w, x)
    # the first layer needs no gradient of its input
    both = count_flops(jax.grad(loss), w, x)
    assert both == 3 * forward - 2 * 32 * 8 * 16


def test_rematerialisation_counts_again():
    def loss(w, x):
        step = jax.checkpoint(lambda y: jnp.tanh(y @ w))
        return step(step(x)).sum()

    w, x = shape(8, 8), shape(4, 8)
    plain = 2 * 4 * 8 * 8
    assert count_flops(jax.grad(loss), w, x) > 5 * plain  # 2 forward, 3 back, and again


@pytest.mark.parametrize("gradient", [False, True])
def test_a_unet_agrees_with_the_compiler(gradient):
    """Within 12%: the compiler counts elementwise work too, and edges exactly."""
    unet = UNet(16, 3, 32, (1, 2), 1, (8,), head_channels=16, norm_groups=8)
    x, t = shape(2, 16, 16, 3), jax.ShapeDtypeStruct((2,), jnp.int32)
    params = jax.eval_shape(unet.init, jax.random.key(0), x, t)

    def loss(params, x, t):
        return unet.apply(params, x, t).sum()

    function = jax.grad(loss) if gradient else loss
    compiler = jax.jit(function).lower(params, x, t).cost_analysis()["flops"]
    assert count_flops(function, params, x, t) == pytest.approx(compiler, rel=0.12)
