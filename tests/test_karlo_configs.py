"""configs/karlo: exports draw as Karlo does."""

import pathlib

import numpy as np
import pytest

from unclip_jax import config as config_lib
from unclip_jax import stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.training import run_config

CONFIGS = pathlib.Path(__file__).parents[1] / "configs/karlo"
INFO = {
    "embed_dim": 768,
    "vocab_size": 49408,
    "context_length": 77,
    "eot_id": 49407,
    "text_width": 768,
    "embedding_mean": np.zeros(768),
    "embedding_std": np.ones(768),
}
# Of its pipeline in diffusers: steps, variance and guidance (1 is none).
KARLO = {
    "prior": {"sampling_steps": 25, "variance": "fixed_small", "guidance": 4.0},
    "decoder": {"sampling_steps": 25, "variance": "learned_range", "guidance": 8.0},
    "upsampler": {"sampling_steps": 7, "variance": "fixed_small"},
}
SIDES = {"prior": (64, None), "decoder": (64, None), "upsampler": (256, 64)}


@pytest.mark.parametrize("name", sorted(KARLO))
def test_exports_draw_as_karlo_does(name):
    config = config_lib.load(str(CONFIGS / f"{name}.py"))
    size, crop = SIDES[name]
    sides = {"image_size": size, "crop_size": crop, "low_res_size": None}
    spec = DataSpec(**INFO, **sides)
    exported = stages.make_stage(run_config.read_config(config), spec).export()[
        "config"
    ]
    expected = {**KARLO[name], "sampler": "ddpm"}
    assert {key: exported["diffusion"][key] for key in expected} == expected
