"""Counted arithmetic against closed forms and the compiler's own count."""

import jax
import jax.numpy as jnp
import pytest

from unclip_jax.models.unet import UNet
from unclip_jax.training.flops import count_flops, model_flops


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


@pytest.mark.slow
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


class Denoiser:
    """A stage of the contract, around a UNet without scans or rematerialisation."""

    batch_spec = {"image": ((16, 16, 3), "float32")}
    unet = UNet(16, 3, 32, (1, 2), 1, (8,), head_channels=16, norm_groups=8)

    def loss(self, params, rng, batch):
        x = batch["image"] + jax.random.normal(rng, batch["image"].shape)
        out = self.unet.apply(params, x, jnp.zeros(len(x), int))
        return jnp.square(out).mean(), {}


@pytest.mark.slow
def test_the_models_operations_agree_with_the_compilers_for_a_step():
    """Within 12%, as above; and with rematerialisation they stay the same."""
    stage, rng = Denoiser(), jax.random.key(0)
    x, t = shape(4, 16, 16, 3), jax.ShapeDtypeStruct((4,), jnp.int32)
    params = jax.eval_shape(stage.unet.init, rng, x, t)
    step = jax.jit(jax.value_and_grad(stage.loss, has_aux=True))
    lowered = step.lower(params, rng, {"image": x})
    counted = model_flops(stage, 4, params)
    assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.12)

    class Again(Denoiser):
        def loss(self, *args):
            return jax.checkpoint(super().loss)(*args)

    assert model_flops(Again(), 4, params) == counted


def test_the_models_operations_in_closed_form():
    class Linear:
        batch_spec = {"x": ((16,), "float32")}

        def loss(self, params, rng, batch):
            return (jnp.tanh(batch["x"] @ params["a"]) @ params["b"]).sum(), {}

    params = {"a": shape(16, 32), "b": shape(32, 5)}
    assert model_flops(Linear(), 8, params) == 3 * 2 * 8 * (16 * 32 + 32 * 5)
