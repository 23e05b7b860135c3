"""Kandinsky 2.2's decoder against diffusers' UNet2DConditionModel.

Every parameter is random. Outputs are of order 1; the greatest difference measured in
float32 on a CPU is 4e-6.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.torch_shapes import torch_shapes
from unclip_jax import models
from unclip_jax.interop import components, diffusers_kandinsky, native
from unclip_jax.interop.diffusers_ddpm import read_ddpm, write_ddpm

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPES = pathlib.Path(__file__).parent / "shapes"
ATOL = 1e-4
DIM, SIDE = 24, 8
T = np.array([3, 900])
PUBLISHED = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "image",
    "attention_head_dim": 64,
    "block_out_channels": [384, 768, 1152, 1536],
    "class_embed_type": None,
    "cross_attention_dim": 768,
    "down_block_types": ["ResnetDownsampleBlock2D"]
    + ["SimpleCrossAttnDownBlock2D"] * 3,
    "encoder_hid_dim": 1280,
    "encoder_hid_dim_type": "image_proj",
    "in_channels": 4,
    "layers_per_block": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 8,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 64,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
}
TINY = {
    "block_out_channels": [32, 64],
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "encoder_hid_dim": DIM,
    "layers_per_block": 1,
    "sample_size": SIDE,
}
KINDS = {
    "none": {},
    "inpaint": {"in_channels": 9},
    "hint": {"in_channels": 8, "addition_embed_type": "image_hint"},
}


def make_unet(kind="none"):
    config = {**PUBLISHED, **TINY, **KINDS[kind]}
    config.pop("_class_name")
    return diffusers.UNet2DConditionModel(**config)


def to_torch(a):
    return torch.from_numpy(np.array(a)).permute(0, 3, 1, 2)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The published scheduler's folder."""
    folder = tmp_path_factory.mktemp("scheduler")
    diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, clip_sample=False
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request, randomised, scheduler, tmp_path_factory):
    """(kind, their UNet, our part)."""
    theirs = randomised(make_unet(request.param), 3)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    config, params = diffusers_kandinsky.load_decoder(folder, scheduler)
    params = diffusers_kandinsky.with_null_embedding(params, normal(9, DIM))
    meta = {"clip_fingerprint": "x"}
    part = components.build_component("decoder", config, params, meta, where="test")
    return request.param, theirs, part


def inputs(kind, side=SIDE):
    """(x_t, embeddings, extra)."""
    extra = {
        "none": None,
        "inpaint": normal(2, 2, side, side, 5),
        "hint": normal(2, 2, 8 * side, 8 * side, 3),
    }[kind]
    return normal(0, 2, side, side, 4), normal(1, 2, DIM), extra


def their_output(kind, unet, x, z, extra):
    cond = {"image_embeds": torch.from_numpy(z)}
    x = to_torch(x)
    if kind == "inpaint":
        x = torch.cat([x, to_torch(extra)], 1)
    if kind == "hint":
        cond["hint"] = to_torch(extra)
    with torch.no_grad():
        out = unet(x, torch.from_numpy(T), None, added_cond_kwargs=cond).sample
    return out.permute(0, 2, 3, 1).numpy()


def our_output(part, x, z, extra, dropped=False):
    module, drop = part.module, jnp.full(2, dropped)
    tokens = jnp.zeros((2, module.context_length), jnp.int32)

    def run(params, x, z, extra):
        arguments = x, T, z, tokens, drop, drop
        return module.apply({"params": params}, *arguments, extra=extra)

    return np.asarray(jax.jit(run)(part.params, x, z, extra))


@pytest.mark.slow
def test_it_predicts_what_theirs_does(pair):
    kind, unet, part = pair
    x, z, extra = inputs(kind)
    expected = their_output(kind, unet, x, z, extra)
    assert expected.shape == (2, SIDE, SIDE, 8) and 0.1 < expected.std() < 10
    np.testing.assert_allclose(our_output(part, x, z, extra), expected, atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["none"], indirect=True)
def test_another_size_and_the_null_embedding(pair):
    """Attention stays at the levels where the trained size has it."""
    kind, unet, part = pair
    x, z, extra = inputs(kind, 12)
    null = np.broadcast_to(normal(9, DIM), z.shape).copy()
    expected = their_output(kind, unet, x, null, extra)
    ours = our_output(part, x, z, extra, dropped=True)
    np.testing.assert_allclose(ours, expected, atol=ATOL)


def test_ours_read_by_them(pair, tmp_path):
    """Saved by us, their class finds every key, no other, and the same settings."""
    _, theirs, part = pair
    diffusers_kandinsky.save_decoder(part.config, part.params, tmp_path)
    model, info = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[key].numpy(), value.numpy())
    for key, value in theirs.config.items():
        if not key.startswith("_"):
            assert model.config[key] == value, key


def test_its_native_export_is_the_same(pair, tmp_path):
    _, _, part = pair
    native.write_part(tmp_path, "decoder", part.config, part.params, part.meta)
    again = components.read_native(tmp_path, "decoder")
    assert again.module == part.module
    jax.tree.map(np.testing.assert_array_equal, again.params, dict(part.params))


def test_full_size_has_every_tensor_of_the_checkpoint():
    fields = diffusers_kandinsky.model_fields(PUBLISHED, "config.json")
    numbers = {"context_length": 77, "eot_id": 49407, "vocab_size": 49408}
    module = models.build("decoder", {**fields, **numbers})
    shapes = components.param_shapes("decoder", module)
    published = json.loads((SHAPES / "kandinsky22_decoder.json").read_text())
    ours = torch_shapes(diffusers_kandinsky.table(fields), shapes)
    assert ours == {k: tuple(v) for k, v in published.items()}
    assert sum(int(np.prod(shape)) for shape in ours.values()) == 1_253_057_288


def test_the_scheduler_is_read_and_written(scheduler, tmp_path):
    diffusion = read_ddpm(scheduler, learned_sigma=True)
    assert diffusion == {
        "schedule": "linear:0.00085:0.012",
        "num_steps": 1000,
        "prediction": "epsilon",
        "clip": None,
        "threshold": None,
        "sampler": "ddpm",
        "variance": "fixed_small",
        "spacing": "leading",
    }
    write_ddpm(tmp_path, diffusion)
    again = diffusers.DDPMScheduler.from_pretrained(tmp_path)
    for key, value in diffusers.DDPMScheduler.from_pretrained(scheduler).config.items():
        # without clip_sample its range says nothing
        assert key.startswith("_") or again.config[key] == value, key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 5}, "in_channels are 5 with addition_embed_type 'image'"),
        ({"out_channels": 3}, "out_channels 3; supported are"),
        ({"encoder_hid_dim": None}, "encoder_hid_dim is None; only one number"),
        ({"class_embed_type": "identity"}, "class_embed_type is 'identity'; only None"),
    ],
)
def test_what_ours_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        diffusers_kandinsky.model_fields({**PUBLISHED, **change}, "config.json")


@pytest.mark.parametrize("pair", ["none", "hint"], indirect=True)
def test_an_input_too_many_or_too_few_is_refused(pair):
    kind, _, part = pair
    x, z, _ = inputs(kind)
    other = normal(0, 2, SIDE, SIDE, 5) if kind == "none" else None
    needs = "nothing" if kind == "none" else "the input 'hint'"
    with pytest.raises(ValueError, match=f"takes {needs} beside x_t"):
        our_output(part, x, z, other)
