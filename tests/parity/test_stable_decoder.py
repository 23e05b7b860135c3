"""Stable unCLIP's UNet against diffusers' UNet2DConditionModel.

Every parameter is random. Outputs are of order 1; the greatest difference measured in
float32 on a CPU is 3e-6.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.torch_shapes import torch_shapes
from tests.parity import stable_pipeline as tiny
from unclip_jax import models
from unclip_jax.interop import components, diffusers_stable, native
from unclip_jax.models import layers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPES = pathlib.Path(__file__).parent / "shapes"
T, LEVELS = np.array([3, 900]), np.array([0, 400])
DIM, LENGTH = tiny.SIZES.embed_dim, 7
NUMBERS = {"context_length": LENGTH, "eot_id": 30, "pad_id": 0, "vocab_size": 31}
PUBLISHED = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "class_embed_type": "projection",
    "cross_attention_dim": 1024,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2048,
    "sample_size": 96,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "use_linear_projection": True,
}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_torch(a):
    return torch.from_numpy(np.array(a)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(their UNet, our part)."""
    root = tmp_path_factory.mktemp("stable")
    theirs = tiny.make_unet()
    theirs.save_pretrained(root / "unet")
    diffusers.DDIMScheduler(prediction_type="v_prediction").save_pretrained(root / "s")
    normalizer = {"mean": normal(8, 1, DIM), "std": np.exp(normal(9, 1, DIM))}
    folder = root / "image_normalizer"
    diffusers_stable.weights.write_weights(folder, normalizer, "model")
    config, params = diffusers_stable.load_decoder(
        root / "unet", root / "s", folder, **NUMBERS
    )
    params["empty_text_states"] = normal(7, LENGTH, tiny.TEXT)
    meta = {"clip_fingerprint": "x"}
    return theirs, components.build_component(
        "decoder", config, params, meta, where="test"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dropped", "sides"), [(False, (8, 12)), (True, (8, 8)), (False, (7, 9))]
)
def test_it_predicts_what_theirs_does(pair, dropped, sides):
    theirs, part = pair
    x, z = normal(0, 2, *sides, 4), normal(1, 2, DIM)
    states = normal(2, 2, LENGTH, tiny.TEXT)
    label = np.concatenate([z, layers.timestep_embedding(LEVELS, DIM)], axis=1)
    drop = jnp.full(2, dropped)
    seen = np.stack([part.params["empty_text_states"]] * 2) if dropped else states
    with torch.no_grad():
        expected = theirs(
            to_torch(x),
            torch.from_numpy(T),
            torch.from_numpy(seen),
            class_labels=torch.from_numpy(0 * label if dropped else label),
        ).sample
    expected = expected.permute(0, 2, 3, 1).numpy()
    module = part.module

    def run(params, x, z, states):
        inputs = x, T, z, None, drop, drop, None, states
        return module.apply({"params": params}, *inputs, extra=LEVELS)

    ours = jax.jit(run)(part.params, x, z, states)
    assert 0.1 < expected.std() < 10
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_ours_read_by_them(pair, tmp_path):
    theirs, part = pair
    folders = tmp_path / "unet", tmp_path / "normalizer"
    diffusers_stable.save_decoder(part.config, part.params, *folders)
    model, info = diffusers.UNet2DConditionModel.from_pretrained(
        folders[0], output_loading_info=True
    )
    assert not any(info.values()), info
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[key].numpy(), value.numpy())


def test_its_native_export_is_the_same(pair, tmp_path):
    _, part = pair
    native.write_part(tmp_path, "decoder", part.config, part.params, part.meta)
    again = components.read_native(tmp_path, "decoder")
    assert again.module == part.module
    jax.tree.map(np.testing.assert_array_equal, again.params, dict(part.params))


@pytest.mark.parametrize(
    ("dim", "name", "count"),
    [
        (1024, "stable_unclip_unet", 870_173_124),
        (768, "stable_unclip_small_unet", 869_517_764),
    ],
)
def test_full_size_has_every_tensor_of_the_checkpoint(dim, name, count):
    config = {**PUBLISHED, "projection_class_embeddings_input_dim": 2 * dim}
    fields = diffusers_stable.model_fields(config, "config.json")
    module = models.build("decoder", {**fields, **NUMBERS})
    shapes = components.param_shapes("decoder", module)
    published = json.loads((SHAPES / f"{name}.json").read_text())
    ours = torch_shapes(diffusers_stable.table(fields), shapes)
    assert ours == {k: tuple(v) for k, v in published.items()}
    assert sum(int(np.prod(shape)) for shape in ours.values()) == count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 9}, "channels are 9 in, 4 out"),
        ({"use_linear_projection": False}, "use_linear_projection is False"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "at the same levels"),
        ({"projection_class_embeddings_input_dim": None}, "is None; it must be twice"),
    ],
)
def test_what_ours_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        diffusers_stable.model_fields({**PUBLISHED, **change}, "config.json")
