"""The benchmark commands, on models that are small enough to time in a test."""

import json
import sys
import types

import numpy as np
import pytest

from benchmarks import embedding_prior, torch_step, train
from unclip_jax import config
from unclip_jax.data.aligned import alignment, writer
from unclip_jax.data.aligned.config import read_config
from unclip_jax.errors import UsageError
from unclip_jax.planning.plan import parse_assumptions
from unclip_jax.training import run_config


@pytest.mark.slow
def test_a_training_step_is_timed(tmp_path, capsys):
    loaded = config.load("configs/icons/prior.py")
    loaded.model.depth, loaded.model.width, loaded.batch_size = 1, 32, 16
    assume = ["embed_dim=32", "context_length=8", "vocab_size=64", "eot_id=63"]
    out = tmp_path / "times.json"
    args = {name: default for name, (default, _) in train.FLAGS.items()}
    args |= {"assume": assume, "steps": 3, "out": str(out)}
    train.main(types.SimpleNamespace(config=loaded, **args))

    times = json.loads(out.read_text())
    low, high = times["step_range"]
    assert 0 < low <= times["step"] <= high
    assert times["examples_per_second"] == pytest.approx(16 / times["step"])
    assert times["init"] > 0 and times["compile"] > 0 and times["loss"] > 0
    assert f"{times['parameters']:,} parameters, float32" in capsys.readouterr().out


def test_assumptions():
    assert parse_assumptions(["embed_dim=768"]) == {"embed_dim": 768}
    with pytest.raises(UsageError, match="--assume=embed_dim=x: expected NAME="):
        parse_assumptions(["embed_dim=x"])


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dalle2_pytorch", None)  # as if it were not
    loaded = config.load("benchmarks/small.py:grid")
    assert (loaded.batch_size, loaded.model.width) == (1, 1664)
    assume = {"embed_dim": 1664, "target_tokens": 256, "condition_tokens": 256}
    with pytest.raises(UsageError, match="peer is dalle2-pytorch .* on PYTHONPATH"):
        torch_step.make(loaded, assume, False)


def make_arrays(folder):
    """Two splits in which a linear map of the condition, and noise, is the target."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((6, 4))
    for name, count in (("train", 80), ("test", 20)):
        x = rng.standard_normal((count, 6)).astype(np.float32)
        y = x @ weights + 0.1 * rng.standard_normal((count, 4))
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", y.astype(np.float32))
        options = {
            "target": {"path": str(folder / "y.npy")},
            "conditions": {"condition": {"path": str(folder / "x.npy")}},
            "splits": {name: 1.0},
        }
        options = read_config(options)
        writer.write(options, alignment.align(options), folder, say=lambda line: None)


@pytest.mark.slow
def test_priors_are_raced(tmp_path, capsys):
    """Ridge regression solves a linear problem; the prior's numbers stand beside it."""
    pytest.importorskip("sklearn")
    make_arrays(tmp_path)
    loaded = config.load("configs/any/embedding_regression.py")
    loaded.data.path, loaded.steps = str(tmp_path / "train"), 12
    loaded.model = {"width": 8, "depth": 1, "num_heads": 1}
    args = {"test": str(tmp_path / "test"), "fold": None, "n": 2, "peer": None}
    args |= {"peer_ff": 1.0, "ours": True, "out": str(tmp_path / "race.json")}
    embedding_prior.main(types.SimpleNamespace(config=loaded, **args))
    race = json.loads((tmp_path / "race.json").read_text())
    assert race["ridge regression"]["to_true"] > 0.98
    ours = race["embedding_regression"]
    assert ours["parameters"] > 0 and ours["cpu_seconds_per_step"] > 0
    assert "chance@1 0.0500, 20 rows" in capsys.readouterr().out
    training = run_config.read_config(loaded)
    split = embedding_prior.read_split(training, "", "1/4")
    assert not {*split.train} & {*split.test} and len(split.test)
    with pytest.raises(UsageError, match="one of --test and --fold"):
        embedding_prior.read_split(training, "", "")
