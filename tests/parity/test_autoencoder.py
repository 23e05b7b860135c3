"""The autoencoder against diffusers' AutoencoderKL and VQModel (MoVQ).

Every parameter is random. Outputs are of order 1; the greatest difference measured in
float32 on a CPU is 1e-5.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.torch_shapes import torch_shapes
from unclip_jax import models
from unclip_jax.interop import components, diffusers_autoencoder, weights

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPES = pathlib.Path(__file__).parent / "shapes"
ATOL = 1e-4
MOVQ = {
    "_class_name": "VQModel",
    "block_out_channels": [128, 256, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_type": "spatial",
    "num_vq_embeddings": 16384,
    "vq_embed_dim": 4,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 768,
}


def make_vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        norm_num_groups=4,
        sample_size=16,
    )


def make_movq():
    return diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
        sample_size=16,
    )


MAKE = {"vae": make_vae, "movq": make_movq}


def to_torch(a):
    return torch.from_numpy(np.array(a)).permute(0, 3, 1, 2)


def to_numpy(a):
    return a.detach().permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module", params=list(MAKE))
def pair(request, randomised, tmp_path_factory):
    """(their model, our part, its folder)."""
    theirs = randomised(MAKE[request.param](), 3)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    config, params = diffusers_autoencoder.load_autoencoder(folder)
    part = components.build_component("autoencoder", config, params, {}, where="test")
    return theirs, part, folder


@pytest.fixture(scope="module")
def images():
    """Neither square nor of the size that the models say."""
    return np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)


def apply(part, method, *inputs):
    module = part.module

    def run(params, *inputs):
        return module.apply({"params": params}, *inputs, method=method)

    return np.asarray(jax.jit(run)(part.params, *inputs))


def test_images_become_the_latents_that_theirs_do(pair, images):
    theirs, part, _ = pair
    with torch.no_grad():
        encoded = theirs.encode(to_torch(images))
    if part.module.num_codes:
        expected = to_numpy(encoded.latents)
        np.testing.assert_allclose(apply(part, "encode", images), expected, atol=ATOL)
        with pytest.raises(ValueError, match="it draws none"):
            apply(part, "encode", images, expected)
        return
    mean = to_numpy(encoded.latent_dist.mean)
    std = to_numpy(encoded.latent_dist.std)
    scale = theirs.config.scaling_factor
    noise = np.random.default_rng(1).standard_normal(mean.shape).astype(np.float32)
    for ours, expected in (
        (apply(part, "encode", images), mean),
        (apply(part, "encode", images, noise), mean + std * noise),
    ):
        np.testing.assert_allclose(ours, scale * expected, atol=ATOL)


def test_latents_become_the_images_that_theirs_do(pair):
    theirs, part, _ = pair
    rng = np.random.default_rng(2)
    latents = rng.standard_normal((2, 8, 12, 4)).astype(np.float32)
    options, scale = {}, 1.0
    if part.module.num_codes:
        options = {"force_not_quantize": True}
    else:
        scale = theirs.config.scaling_factor
    with torch.no_grad():
        expected = to_numpy(theirs.decode(to_torch(latents / scale), **options).sample)
    assert 0.1 < expected.std() < 10
    np.testing.assert_allclose(apply(part, "decode", latents), expected, atol=ATOL)


@pytest.mark.parametrize("pair", ["movq"], indirect=True)
def test_codes_are_the_nearest(pair, images):
    theirs, part, _ = pair
    with torch.no_grad():
        expected = to_numpy(theirs(to_torch(images)).sample)
    np.testing.assert_allclose(apply(part, None, images), expected, atol=ATOL)


def test_ours_read_by_them(pair, tmp_path):
    """Saved by us, their class finds every key and no other, and the same config."""
    theirs, part, _ = pair
    diffusers_autoencoder.save_autoencoder(part.config, part.params, tmp_path)
    model, info = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[key].numpy(), value.numpy())
    unused = set(diffusers_autoencoder.UNUSED[type(theirs).__name__])
    for key in theirs.config.keys() - unused:
        if not key.startswith("_"):
            value = model.config[key]
            value = tuple(value) if isinstance(value, list) else value
            assert value == theirs.config[key], key


def test_old_names_of_attention_are_read(pair, tmp_path):
    """Files of before diffusers 0.17 call to_q query, and so on."""
    _, part, folder = pair
    old = {new: old for old, new in diffusers_autoencoder.OLD_NAMES.items()}
    tensors = {}
    for name, a in weights.read_weights(folder).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        tensors[name] = a
    assert any(".proj_attn." in name for name in tensors)
    weights.write_weights(tmp_path, tensors, "diffusion_pytorch_model")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    _, params = diffusers_autoencoder.load_autoencoder(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, dict(part.params))


@pytest.mark.parametrize(
    ("config", "name", "count"),
    [(MOVQ, "kandinsky22_movq", 67_832_495), (VAE, "stable_unclip_vae", 83_653_863)],
)
def test_full_size_has_every_tensor_of_the_checkpoint(config, name, count):
    fields = diffusers_autoencoder.model_fields(config, "config.json")
    module = models.build("autoencoder", fields)
    shapes = components.param_shapes("autoencoder", module)
    published = json.loads((SHAPES / f"{name}.json").read_text())
    ours = torch_shapes(diffusers_autoencoder.table(fields), shapes)
    assert ours == {k: tuple(v) for k, v in published.items()}
    assert sum(a.size for a in jax.tree.leaves(shapes)) == count


@pytest.mark.slow
def test_half_precision_stays_close(pair, images):
    _, part, _ = pair
    arguments = part.kind, part.config, part.params, {}
    half = components.build_component(*arguments, dtype="bfloat16", where="test")
    latents, coarse = (apply(p, "encode", images) for p in (part, half))
    assert coarse.dtype == jnp.float32
    assert 0 < np.abs(latents - coarse).max() < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "VQDiffusion"}, "found a VQDiffusion"),
        ({"norm_type": "batch"}, "norm_type is 'batch'"),
        ({"norm_num_groups": 8}, "norm_num_groups is 8; with spatial norms"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 4}, "at the same levels"),
        ({"block_out_channels": [128, 200]}, "must be multiples of the first"),
        ({"lookup_from_codebook": True}, "lookup_from_codebook is True"),
    ],
)
def test_what_ours_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        diffusers_autoencoder.model_fields({**MOVQ, **change}, "config.json")


def test_sizes_that_do_not_divide_are_refused(pair):
    _, part, _ = pair
    with pytest.raises(ValueError, match="15x16 do not divide into latents"):
        apply(part, "encode", np.zeros((1, 15, 16, 3), np.float32))
