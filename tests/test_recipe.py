"""The lines of docs/recipe.md: their configs, and the command that fills the table."""

import json
import types

import pytest

from benchmarks import recipe
from tests.configs import load_complete
from tests.stages.test_stages import INFO
from unclip_jax import config as config_lib
from unclip_jax import stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.errors import UsageError
from unclip_jax.training.optimizer import make_optimizer
from unclip_jax.training.run_config import read_config

SCORES = {"icons/glyph_top1": {"value": 0.5}, "frechet_clip": {"value": 4.125}}


@pytest.mark.parametrize("name", recipe.ROWS)
def test_every_line_is_a_config_that_trains(name):
    config = read_config(load_complete(f"{recipe.CONFIG}:{name}"))
    stage = stages.make_stage(config, DataSpec(**{**INFO, "image_size": 32}))
    assert make_optimizer(config.optimizer, config.steps)
    paper = read_config(load_complete(f"{recipe.CONFIG}:paper"))
    assert (config == paper) == (name == "paper")
    assert stage.fields["patch_size"] == 8


@pytest.mark.parametrize("name", ["decoder.py", "decoder.py:few_steps", "prior.py"])
def test_the_modern_configs_are_read(name):
    config = read_config(config_lib.load(f"configs/modern/{name}"))
    assert config.optimizer.name == "muon" and config.ema_profiles
    assert config.checkpoint.keep_every * 10 <= config.steps
    spec = {"embed_dim": 1024, "vocab_size": 49408, "context_length": 256}
    stage = stages.make_stage(config, DataSpec(image_size=64, eot_id=49407, **spec))
    assert bool(stage.diffusion.consistency) == name.endswith("few_steps")


def test_a_table_goes_on_where_it_was(tmp_path, capsys):
    """Finished lines are read back: nothing is trained."""
    for i, name in enumerate(("paper", "muon")):
        (tmp_path / name).mkdir()
        row = {"name": name, "seconds_per_step": 0.25, "steps": 240 + i}
        row |= {"minutes": 1.0, "scores": SCORES}
        (tmp_path / name / "row.json").write_text(json.dumps(row))
    args = {"rows": ["paper", "muon"], "out": str(tmp_path), "minutes": 1.0}
    folders = {"model": str(tmp_path), "records": str(tmp_path)}
    recipe.main(types.SimpleNamespace(**args, **folders))
    written = (tmp_path / "table.md").read_text()
    assert written in capsys.readouterr().out
    *_, paper, muon = written.splitlines()
    assert muon == "| Muon | 0.250 | 241 |  |  | 50.0 |  |  | 4.12 |  |"
    assert paper.startswith("| UNet on patches of 8")


def test_what_is_missing_is_named(tmp_path):
    args = {"out": str(tmp_path), "model": str(tmp_path), "records": "nowhere"}
    with pytest.raises(UsageError, match="there is no nowhere"):
        recipe.main(types.SimpleNamespace(rows=[], **args))
    with pytest.raises(UsageError, match="--rows=moun: expected one of paper"):
        recipe.main(types.SimpleNamespace(rows=["moun"], **args))
