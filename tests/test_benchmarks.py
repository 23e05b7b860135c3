"""The benchmark commands, on models that are small enough to time in a test."""

import json
import types

import pytest

from benchmarks import train
from unclip_jax import config
from unclip_jax.errors import UsageError
from unclip_jax.planning.plan import parse_assumptions


@pytest.mark.slow
def test_a_training_step_is_timed(tmp_path, capsys):
    loaded = config.load("configs/icons/prior.py")
    loaded.model.depth, loaded.model.width, loaded.batch_size = 1, 32, 16
    assume = ["embed_dim=32", "context_length=8", "vocab_size=64", "eot_id=63"]
    out = tmp_path / "times.json"
    args = {"assume": assume, "steps": 3, "matmul": False, "out": str(out)}
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
