"""What the UNet's fields for memory and speed do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_variables
from unclip_jax.models import layers
from unclip_jax.models.unet import UNet
from unclip_jax.parallel.mesh import make_mesh

RNG = np.random.default_rng(0)
FIELDS = {
    "image_size": 8,
    "out_channels": 3,
    "channels": 8,
    "channel_mult": (1,),
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "head_channels": 8,
    "norm_groups": 4,
}


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient():
    x, t = normal(1, 8, 8, 3), jnp.array([5])
    fields = {**FIELDS, "attention_resolutions": ()}  # faster to compile
    plain, remat = (UNet(**fields, remat=remat) for remat in (False, True))
    variables = random_variables(plain, x, t)

    def gradient(model):
        loss = lambda v: jnp.square(model.apply(v, x, t)).mean()  # noqa: E731
        assert ("remat" in str(jax.make_jaxpr(loss)(variables))) == model.remat
        return jax.jit(jax.grad(loss))(variables)

    expected, found = gradient(plain), gradient(remat)
    scale = max(np.abs(g).max() for g in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


@pytest.mark.slow
def test_a_bfloat16_unet_predicts_in_float32():
    """What the last convolution adds is not rounded to bfloat16."""
    model = UNet(**FIELDS, dtype=jnp.bfloat16)
    x, t = normal(2, 8, 8, 3), jnp.array([5, 900])
    variables = jax.jit(model.init)(jax.random.key(0), x, t)
    variables = jax.tree.map(lambda p: p + 0.1 * normal(*p.shape), variables)
    run = jax.jit(functools.partial(model.apply, capture_intermediates=True))
    predicted, state = run(variables, x, t)
    assert predicted.dtype == jnp.float32
    assert (predicted != predicted.astype(jnp.bfloat16)).mean() > 0.9

    h = jax.nn.silu(state["intermediates"]["norm_out"]["__call__"][0])
    assert h.dtype == jnp.float32
    conv = variables["params"]["conv_out"]
    exact = jax.lax.conv_general_dilated(
        h, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(predicted, exact + conv["bias"], atol=1e-5)


@pytest.mark.slow
def test_an_efficient_unet_does_a_quarter_of_the_arithmetic():
    """Karlo's decoder at full size: 584 and 138 GFLOP a picture, by XLA's count."""
    wide = {
        **FIELDS,
        "image_size": 64,
        "channels": 32,
        "channel_mult": (1, 2, 3, 4),
        "norm_groups": 32,
        "num_res_blocks": 3,
        "attention_resolutions": (32, 16, 8),
    }
    early = {"patch_size": 2, "attention_resolutions": (16, 8, 4)}
    x, t = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), jnp.array([5])
    flops = []
    for changes in ({}, {**early, "num_res_blocks": (2, 3, 3, 4)}):
        model = UNet(**{**wide, **changes})
        variables = jax.eval_shape(model.init, jax.random.key(0), x, t)
        cost = jax.jit(model.apply).lower(variables, x, t).cost_analysis()
        flops.append(cost["flops"])
    assert 3 < flops[0] / flops[1] < 6


@pytest.mark.slow
def test_every_kernel_is_gathered_and_every_device_keeps_its_rows():
    """Under a mesh: constraints on a kernel, what goes into it and what comes out."""
    model = UNet(**FIELDS)
    x, t = jnp.zeros((16, 8, 8, 3)), jnp.zeros(16)
    variables = jax.eval_shape(model.init, jax.random.key(0), x, t)
    kernels = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(variables))

    def constraints(rows):
        program = jax.make_jaxpr(model.apply)(variables, x[:rows], t[:rows])
        return str(program).count("= sharding_constraint[")

    assert constraints(16) == 0
    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        assert constraints(16) == 3 * kernels
        assert constraints(15) == kernels  # which do not divide


def test_what_pixels_refine_by_torchs_convolutions():
    """Added to what the same UNet predicts without; nothing at initialization."""
    torch = pytest.importorskip("torch")
    fields = {**FIELDS, "attention_resolutions": (), "patch_size": 4}
    plain, refined = UNet(**fields), UNet(**fields, refine_channels=5)
    x, t = normal(2, 8, 8, 3), jnp.array([5, 900])
    zeros = jax.jit(refined.init)(jax.random.key(0), x, t)["params"]["refine_2"]
    assert not np.any(zeros["kernel"]) and not np.any(zeros["bias"])
    variables = random_variables(refined, x, t)
    params = variables["params"]
    rest = {k: v for k, v in params.items() if not k.startswith("refine")}
    y = plain.apply({"params": rest}, x, t)

    def conv(h, name):
        kernel = torch.tensor(np.asarray(params[name]["kernel"])).permute(3, 2, 0, 1)
        bias = torch.tensor(np.asarray(params[name]["bias"]))
        return torch.nn.functional.conv2d(h, kernel, bias, padding=1)

    time = layers.timestep_embedding(t, fields["channels"])
    for name in ("time_1", "time_2", "refine_time"):
        time = time @ params[name]["kernel"] + params[name]["bias"]
        time = time * jax.nn.sigmoid(time) if name != "refine_time" else time
    h = torch.tensor(np.asarray(y)).permute(0, 3, 1, 2)
    shift = torch.tensor(np.asarray(time))[:, :, None, None]
    silu = torch.nn.functional.silu
    h = conv(silu(conv(silu(conv(h, "refine_0") + shift), "refine_1")), "refine_2")
    want = np.asarray(y) + h.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(refined.apply(variables, x, t), want, atol=2e-5)
