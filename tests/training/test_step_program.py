"""What makes a training step fast, read off its programs; nothing is timed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import small
from unclip_jax import stages
from unclip_jax.models import unet
from unclip_jax.models.layers import Transformer
from unclip_jax.planning.plan import assumed_spec
from unclip_jax.training.flops import model_flops
from unclip_jax.training.run_config import read_config


def gradient_program(model, *inputs):
    """The compiled gradient of a model's squared output."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)

    def loss(params):
        return jnp.square(model.apply(params, *inputs)).sum()

    return jax.jit(jax.grad(loss)).lower(shapes)


def most_operands(lowered) -> int:
    """The most arrays that a fused loop of the compiled program reads."""
    text = lowered.compile().as_text()
    calls = re.findall(r" fusion\(([^)]*)\)", text[text.index("\nENTRY ") :])
    return max(call.count("%") for call in calls)


@pytest.mark.slow
def test_layers_do_not_add_up_the_residual_stream_anew():
    """Deeper transformers and UNets have no loops that read more arrays."""
    x = jnp.ones((2, 5, 16))
    shallow, deep = (
        most_operands(gradient_program(Transformer(n, 2), x)) for n in (2, 5)
    )
    assert deep <= shallow + 1

    def of(blocks):
        model = unet.UNet(8, 3, 8, (1,), blocks, (8,), 8, norm_groups=4)
        return gradient_program(model, jnp.ones((2, 8, 8, 3)), jnp.ones(2))

    assert most_operands(of(4)) <= most_operands(of(1)) + 2


def test_gradients_of_kernels_are_not_transposed():
    x = jnp.ones((2, 5, 16))
    model = Transformer(1, 2)
    text = gradient_program(model, x).as_text()
    transposed = re.findall(r"stablehlo\.transpose.*-> tensor<([\dx]+)xf32>", text)
    kernels = {"16x16", "16x64", "64x16"}
    assert transposed and not kernels & set(transposed)


def test_the_step_does_the_arithmetic_of_the_formula_and_no_more():
    """Within 2% of 3 F, elementwise work included, by the compiler's count."""
    config = small.get_config("prior")
    config.model.depth, config.batch_size = 2, 8
    config = read_config(config)
    spec = assumed_spec(config, {"embed_dim": 768, "context_length": 77})
    stage = stages.make_stage(config, spec)
    params = jax.eval_shape(stage.init, jax.random.key(0))
    batch = {
        name: jax.ShapeDtypeStruct((8, *shape), dtype)
        for name, (shape, dtype) in stage.batch_spec.items()
    }
    rng = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.jit(jax.value_and_grad(stage.loss, has_aux=True))
    counted = step.lower(params, rng, batch).cost_analysis()["flops"]
    assert counted == pytest.approx(model_flops(stage, 8, params), rel=0.02)
    assert np.isfinite(counted)
