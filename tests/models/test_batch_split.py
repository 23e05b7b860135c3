"""Under fsdp each device computes its own rows, whatever way the kernels are split."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from unclip_jax.models import layers
from unclip_jax.models.unet import UNet
from unclip_jax.parallel import sharding
from unclip_jax.parallel.mesh import make_mesh

ROWS, OWN = 44, 22  # of all devices, of one; no kernel has such sizes
PLACES = (1, 4, 7, 16)  # pixels or tokens of a row, which products may take as rows


class Captions(nn.Module):
    """A transformer as the priors and the decoder's text tower use it."""

    @nn.compact
    def __call__(self, x):
        blocks = layers.Transformer(2, 1, scan_layers=True, remat="full")
        return blocks(x[:, 0])


class Pixels(nn.Module):
    """A UNet with attention."""

    @nn.compact
    def __call__(self, x):
        unet = UNet(
            image_size=4,
            out_channels=3,
            channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(2,),
            head_channels=16,
            remat=True,
        )
        return unet(x, jnp.zeros(len(x)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Captions(), (4, 7, 32)),
        (Pixels(), (4, 4, 3)),
    ],
    ids=["transformer", "unet"],
)
def test_no_device_computes_all_rows(module, shape):
    mesh = make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
    x = jax.ShapeDtypeStruct((ROWS, *shape), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    places = sharding.state_shardings(params, mesh, min_size=512)
    assert any(s.spec != P() for s in jax.tree.leaves(places))

    def loss(params, x):
        return jnp.square(module.apply(params, x)).mean()

    step = jax.jit(
        jax.grad(loss),
        in_shardings=(places, NamedSharding(mesh, P(("data", "fsdp")))),
        out_shardings=places,
    )
    with jax.set_mesh(mesh):
        program = step.lower(params, x).compile().as_text()
    pattern = r"= \w+\[(\d+),[\d,]+\]\S* (?:dot|convolution)\("
    computed = set(map(int, re.findall(pattern, program)))
    assert computed & {OWN * places for places in PLACES}
    assert not computed & {ROWS * places for places in PLACES}
    gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", program)
    assert gathered  # kernels, and no activations
    assert not [sizes for sizes in gathered if str(ROWS) in sizes.split(",")]
