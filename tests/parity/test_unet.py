"""The upsampler against diffusers' UNet2DModel, as unCLIP's super-resolution has it.

Every parameter is random, zero-initialised ones too. Outputs are of order 1; the
greatest difference measured in float32 on a CPU is 5e-6.
"""

import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from tests.interop.torch_shapes import torch_shapes
from unclip_jax import models
from unclip_jax.interop import components, diffusers_unet, diffusers_upsampler
from unclip_jax.interop import weights as weight_files
from unclip_jax.models.upsampler import upsample

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPES = pathlib.Path(__file__).parent / "shapes"
ATOL = 1e-4
T = np.array([3, 900])
KARLO = {
    "_class_name": "UNet2DModel",
    "add_attention": False,
    "block_out_channels": [320, 640, 960, 1280],
    "down_block_types": ["ResnetDownsampleBlock2D"] * 4,
    "in_channels": 6,
    "layers_per_block": 3,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "sample_size": 256,
    "up_block_types": ["ResnetUpsampleBlock2D"] * 4,
}


def tensor(a):
    return torch.from_numpy(np.array(a)).permute(0, 3, 1, 2)


def their_outputs(unet, x, low_res, t=T):
    """As UnCLIPPipeline calls it: the small picture enlarged, then concatenated."""
    with torch.no_grad():
        large = torch.nn.functional.interpolate(
            tensor(low_res), size=x.shape[1:3], mode="bicubic", antialias=True
        )
        out = unet(torch.cat([tensor(x), large], 1), torch.from_numpy(t)).sample
    return out.permute(0, 2, 3, 1).numpy()


def our_outputs(config, params, x, low_res):
    part = components.build_component("upsampler_32", config, params, {}, where="test")
    return jax.jit(part.module.apply)({"params": params}, x, T, low_res)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    shapes = (2, 32, 32, 3), (2, 16, 16, 3)
    return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


@pytest.fixture(scope="module")
def loaded(reference):
    folder = reference.folder
    return diffusers_upsampler.load_upsampler(
        folder / "super_res_first", folder / "super_res_scheduler", low_res_size=16
    )


@pytest.fixture(scope="module")
def outputs(loaded, pictures):
    return our_outputs(*loaded, *pictures)


def test_theirs_read_by_us(reference, loaded, outputs, pictures):
    config, _ = loaded
    theirs = their_outputs(reference.pipeline.super_res_first, *pictures)
    assert 0.1 < theirs.std() < 10
    np.testing.assert_allclose(outputs, theirs, atol=ATOL)
    assert config["diffusion"] == diffusers_upsampler.KARLO  # the scheduler's
    other = their_outputs(reference.pipeline.super_res_last, *pictures)
    assert np.abs(other - theirs).max() > 0.1


def test_ours_read_by_them(loaded, outputs, pictures, tmp_path):
    """Saved by us, their class finds every key, no other, and gives the same."""
    diffusers_upsampler.save_upsampler(*loaded, tmp_path)
    model, info = diffusers.UNet2DModel.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    theirs = their_outputs(model.eval(), *pictures)
    np.testing.assert_allclose(outputs, theirs, atol=ATOL)


@pytest.mark.slow
def test_scale_shift_and_a_learned_variance(randomised, pictures, tmp_path):
    """Three levels of two blocks each, scale and shift, half precision, both ways."""
    model = diffusers.UNet2DModel(
        in_channels=6,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D",) * 3,
        up_block_types=("ResnetUpsampleBlock2D",) * 3,
        block_out_channels=(8, 8, 24),
        layers_per_block=2,
        norm_num_groups=8,
        add_attention=False,
        resnet_time_scale_shift="scale_shift",
        sample_size=32,
    )
    randomised(model, 5).half().save_pretrained(tmp_path / "theirs", variant="fp16")
    loaded = diffusers_upsampler.load_upsampler(tmp_path / "theirs", low_res_size=16)
    ours = our_outputs(*loaded, *pictures)
    assert ours.shape == (2, 32, 32, 6)
    theirs = their_outputs(model.float(), *pictures)
    np.testing.assert_allclose(ours, theirs, atol=ATOL)
    diffusers_upsampler.save_upsampler(*loaded, tmp_path / "ours", dtype="float16")
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours").float().eval()
    np.testing.assert_array_equal(their_outputs(again, *pictures), theirs)


def test_karlo_at_full_size_has_every_name_and_shape():
    """691,579,523 parameters, without allocating them."""
    fields = diffusers_upsampler.model_fields(KARLO, "a")
    fields["low_res_size"] = 64
    shapes = components.param_shapes("upsampler", models.build("upsampler", fields))
    table = diffusers_unet.table(fields)
    found = torch_shapes(table, shapes)
    expected = json.loads((SHAPES / "karlo_super_res.json").read_text())
    assert {k: list(v) for k, v in found.items()} == expected
    assert len(table) == len(jax.tree.leaves(shapes)) == 408
    assert sum(s.size for s in jax.tree.leaves(shapes)) == 691_579_523
    # and the config that trains one says the same of the model
    path = SHAPES.parents[2] / "configs" / "karlo" / "upsampler.py"
    config = runpy.run_path(str(path))["get_config"]()
    model = config.model.to_dict()
    assert model.pop("remat")
    assert model == {k: fields[k] for k in model} and len(model) > 6
    said = diffusers_upsampler.KARLO
    diffusion = config.diffusion.to_dict()
    assert {k: diffusion[k] for k in said.keys() & diffusion.keys()} == {
        k: said[k] for k in said.keys() & diffusion.keys()
    }


@pytest.mark.parametrize("sizes", [(16, 64), (16, 32), (7, 21)])
def test_enlarging_is_torchs(sizes):
    """Bicubic, antialiased (which changes nothing where pictures grow)."""
    rng = np.random.default_rng(1)
    small, large = sizes
    x = rng.uniform(-1, 1, (1, small, small, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        tensor(x), size=(large, large), mode="bicubic", antialias=True
    )
    ours = upsample(x, (large, large), "bicubic")
    expected = theirs.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_what_is_missing_or_unknown_is_named(reference, tmp_path):
    source = reference.folder / "super_res_last"
    tensors = weight_files.read_weights(source)
    tensors["conv_uot.bias"] = tensors.pop("conv_out.bias")
    weight_files.write_weights(tmp_path, tensors, "diffusion_pytorch_model")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    message = "1 missing: conv_out.bias; 1 unexpected: conv_uot.bias"
    with pytest.raises(ValueError, match=message):
        diffusers_upsampler.load_upsampler(tmp_path, low_res_size=16)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"add_attention": True}, "add_attention is True; only False"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos is False; only True"),
        ({"in_channels": 3}, "3 in, 3 out; an upsampler takes two"),
        ({"down_block_types": ["DownBlock2D"] * 4}, "DownBlock2D, .* supported are"),
        ({"sample_size": None}, "does not say sample_size"),
    ],
)
def test_settings_without_a_counterpart_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        diffusers_upsampler.model_fields({**KARLO, **change}, "a")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"resize": "bilinear"}, "resize 'bicubic'; this .* has 'bilinear'"),
        ({"residual": True}, "residual False; this .* has True"),
        ({"patch_size": 2}, "patch_size 2"),
    ],
)
def test_upsamplers_they_cannot_hold_are_refused(loaded, change, message, tmp_path):
    config, params = loaded
    config = {**config, "model": {**config["model"], **change}}
    with pytest.raises(ValueError, match=message):
        diffusers_upsampler.save_upsampler(config, params, tmp_path / "a")
    assert not list(tmp_path.iterdir())
