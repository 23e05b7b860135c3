"""configs/emoji: every file can be used, and they fit each other."""

import pathlib

import numpy as np
import pytest

from unclip_jax import config as config_lib
from unclip_jax import stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.embedding import config as embedding
from unclip_jax.evaluation.config import make_metrics, read_config
from unclip_jax.training import run_config

CONFIGS = pathlib.Path(__file__).parents[1] / "configs" / "emoji"
INFO = {
    "image_size": 64,
    "embed_dim": 128,
    "vocab_size": 2048,
    "context_length": 24,
    "eot_id": 2047,
    "embedding_mean": np.zeros(128),
    "embedding_std": np.ones(128),
    "clip_fingerprint": "a-clip",
}


def load(name):
    return config_lib.load(str(CONFIGS / f"{name}.py"))


@pytest.mark.parametrize("name", ["clip", "prior", "decoder", "decoder_transformer"])
def test_stages(name):
    config = load(name)
    stage = stages.make_stage(run_config.read_config(config), DataSpec(**INFO))
    assert stage.export()["part"] == name.partition("_")[0]
    if name != "clip":
        assert config.data.path == "runs/emoji/records/train"


def test_embedding_and_evaluation():
    embed, evaluate, clip = load("embed"), load("eval"), load("clip")
    assert embedding.read_config(embed)
    make_metrics(read_config(evaluate), evaluate.count)
    for config in (embed, evaluate, clip):
        assert config.data.source == "parquet" and config.data.path == "data/emoji64"
        assert config.data.image_size == 64
    train = (embed.splits.train, evaluate.reference.data, clip.data)
    assert {part.files for part in train} == {"train*.parquet"}
    held_out = (embed.splits.validation, evaluate.data)
    assert {part.files for part in held_out} == {"validation*.parquet"}
