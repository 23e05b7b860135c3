"""configs/kandinsky22 and configs/stable_unclip: the published models' tensors."""

import json
import pathlib

import jax
import numpy as np
import pytest

from tests.interop.torch_shapes import torch_shapes
from unclip_jax import config as config_lib
from unclip_jax import stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.embedding.config import read_config as read_embedding
from unclip_jax.interop import diffusers_kandinsky, diffusers_prior, diffusers_stable
from unclip_jax.training.run_config import read_config

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SHAPES = pathlib.Path(__file__).parent / "parity" / "shapes"
# config -> (width of the embeddings and of the text states, side of the latents, the
# table of tensors, the published ones)
MODELS = {
    "kandinsky22/decoder": (1280, 1280, 64, diffusers_kandinsky, "kandinsky22_decoder"),
    "kandinsky22/prior": (1280, 1280, 64, diffusers_prior, "kandinsky22_prior"),
    "stable_unclip/decoder": (1024, 1024, 96, diffusers_stable, "stable_unclip_unet"),
}


def spec(dim, width, side):
    return DataSpec(
        image_size=8 * side,
        embed_dim=dim,
        vocab_size=49408,
        context_length=77,
        eot_id=49407,
        embedding_mean=np.zeros(dim),
        embedding_std=np.ones(dim),
        text_width=width,
        empty_text_states=np.zeros((77, width)),
        empty_clip_text=np.zeros(dim),
        empty_clip_image=np.zeros(dim),
        latent_shape=(side, side, 4),
        has_latent_std=False,
    )


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_tensor_is_there(name):
    *sizes, module, published = MODELS[name]
    config = config_lib.load(str(CONFIGS / f"{name}.py")).unlock()
    if "scan_layers" in config.model:
        config.model.scan_layers = False  # tables are of single blocks
    stage = stages.make_stage(read_config(config), spec(*sizes))
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    if module is diffusers_prior:
        table = module.table(stage.fields["depth"])
    else:
        usual = {"extra": "none", "num_res_blocks": 2, "norm_groups": 32}
        table = module.table({**usual, **stage.fields})
    ours = torch_shapes(table, shapes)
    theirs = json.loads((SHAPES / f"{published}.json").read_text())
    assert ours == {k: tuple(v) for k, v in theirs.items()}


@pytest.mark.parametrize("name", ["kandinsky22", "stable_unclip"])
def test_the_configs_of_embedding(name):
    config = read_embedding(config_lib.load(str(CONFIGS / name / "embed.py")))
    assert config.autoencoder and config.text_states
    assert config.latent_std == (name == "stable_unclip")
