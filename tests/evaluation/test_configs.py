"""Every evaluation config passes the runner's own check."""

import pathlib

import pytest

from unclip_jax import config as config_lib
from unclip_jax.evaluation import features, sweep
from unclip_jax.evaluation.config import make_metrics, read_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    "name",
    ["fid.py", "icons/eval.py", "paper/eval_coco30k.py", "paper/eval_coco30k.py:sweep"],
)
def test_a_config_can_be_used(name):
    config = read_config(config_lib.load(str(CONFIGS / name)))
    metrics = make_metrics(config, config.count)
    extractors = features.read_options(config.extractors)
    features.layers_asked(metrics, extractors)
    assert bool(sweep.read_sweep(config)) == name.endswith(":sweep")


def test_the_protocol_is_the_papers():
    config = config_lib.load(str(CONFIGS / "paper/eval_coco30k.py"))
    assert config.count == 30_000 and config.crop.size == 256
    assert config.generation.decoder_guidance == 1.25
    table_3 = {
        "prior_sampler": "ddpm",
        "prior_variance": "analytic",
        "prior_steps": 64,
        "decoder_sampler": "ddpm",
        "decoder_variance": "learned_range",
        "decoder_steps": 250,
    }
    assert {key: config.generation[key] for key in table_3} == table_3
    assert config.reference.count == -1  # the whole validation set
