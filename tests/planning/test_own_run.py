"""Configs for anybody's data: what is found in a folder, and what is made of it."""

import io
import pathlib
import types

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from unclip_jax import config as config_lib
from unclip_jax import stages
from unclip_jax.data.own_data import OwnData, inspect_folder
from unclip_jax.embedding import config as embedding
from unclip_jax.evaluation.config import make_metrics
from unclip_jax.evaluation.config import read_config as read_evaluation
from unclip_jax.planning import own_run
from unclip_jax.planning.plan import assumed_spec
from unclip_jax.training.run_config import read_config


def png(i, side=40):
    file = io.BytesIO()
    Image.new("RGB", (side, side + 8), (i, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_folder(folder, count=60):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(png(i))
        (folder / f"{i:03d}.txt").write_text(f"a thing of the number {i}")
    return folder


def write_parquet(file, count):
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [png(i) for i in range(count)],
        "caption": [f"thing {file.stem} {i}" for i in range(count)],
    }
    parquet.write_table(pa.table(columns), file)


def test_a_folder_is_divided_by_its_captions(tmp_path):
    found = inspect_folder(str(write_folder(tmp_path)), 600)
    assert found.options == {"source": "folder", "path": str(tmp_path)}
    assert found.splits["train"] == {"subset": "train"}
    assert sum(found.counts.values()) == 60 and found.counts["validation"] >= 2
    assert found.side == 40 and found.context_length % 4 == 0
    assert found.prompts and all("a thing" in prompt for prompt in found.prompts)


def test_folders_and_files_that_are_divided_already_stay_so(tmp_path):
    write_parquet(tmp_path / "a" / "train-0.parquet", 9)
    write_parquet(tmp_path / "a" / "val.parquet", 3)
    found = inspect_folder(str(tmp_path / "a"), 600)
    assert found.options["source"] == "parquet"
    assert found.counts == {"train": 9, "validation": 3}
    for part, count in (("train", 7), ("validation", 4)):
        write_folder(tmp_path / "b" / part, count)
    found = inspect_folder(str(tmp_path / "b"), 600)
    assert found.counts == {"train": 7, "validation": 4}


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data .* does not exist"):
        inspect_folder(str(tmp_path / "none"), 600)
    with pytest.raises(ValueError, match="(too few|empty)"):
        inspect_folder(str(write_folder(tmp_path, 1)), 600)


def own_data(side=64, count=5000):
    return OwnData(
        options={"source": "folder", "path": "data/mine"},
        splits={name: {"subset": name} for name in ("train", "validation")},
        counts={"train": count, "validation": count // 20},
        failed={},
        side=side,
        vocab_size=2048,
        context_length=16,
        prompts=("a cat",),
    )


@pytest.fixture(scope="module")
def plans():
    """An hour on two cores, on a fast machine, and a few minutes."""
    make = own_run.make_plan
    return {
        "hour": make("mine", own_data(), 60.0, 2.5e11, 1),
        "fast": make("mine", own_data(), 60.0, 1e14, 1),
        "short": make("mine", own_data(), 12.0, 2.5e11, 1),
    }


def images_seen(plan):
    config = plan.configs["decoder"]
    return config["steps"] * config["batch_size"]


def test_sizes_and_steps_fit_the_time(plans):
    for minutes, plan in ((60, plans["hour"]), (12, plans["short"])):
        assert sum(plan.minutes.values()) <= minutes - own_run.OTHER
    assert sum(plans["hour"].minutes.values()) > 35
    sides = {name: p.configs["clip"]["data"]["image_size"] for name, p in plans.items()}
    assert sides == {"hour": 64, "fast": 64, "short": 32}
    assert plans["fast"].configs["decoder"]["model"]["channels"] == 256
    assert images_seen(plans["hour"]) >= own_run.ENOUGH
    assert images_seen(plans["fast"]) > 10 * images_seen(plans["hour"])
    for plan in plans.values():  # no CLIP that knows its examples by heart
        assert plan.epochs["clip"] <= own_run.MOST_EPOCHS["clip"]


@pytest.mark.parametrize("name", ["hour", "fast", "short"])
def test_the_configs_are_ones_that_the_commands_take(plans, name):
    configs = plans[name].configs
    side = configs["clip"]["data"]["image_size"]
    dim = configs["clip"]["model"]["embed_dim"]
    assume = dict(image_size=side, vocab_size=2048, context_length=16, eot_id=2047)
    for stage in own_run.STAGES:
        config = read_config(configs[stage])
        more = {} if stage == "clip" else {"embed_dim": dim}
        stages.make_stage(config, assumed_spec(config, {**assume, **more}))
    assert embedding.read_config(configs["embed"])
    evaluation = read_evaluation(configs["eval"])
    make_metrics(evaluation, evaluation.count)


def test_the_command_writes_files_and_keeps_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_run, "measure_speed", lambda: 2.5e11)
    write_folder(tmp_path / "data")
    lines = []

    def init(**changes):
        values = dict(data="data", name="mine", minutes=10.0, overwrite=False)
        own_run.init(types.SimpleNamespace(**{**values, **changes}), lines.append)

    init()
    text = "\n".join(lines)
    assert "held out" in text and "Expect" in text and "make own" in text
    folder = pathlib.Path("runs/mine/configs")
    names = sorted(file.stem for file in folder.glob("*.py"))
    assert names == ["clip", "decoder", "embed", "eval", "prior"]
    config = config_lib.load(str(folder / "clip.py"))
    assert read_config(config).data["path"] == "data"
    assert (tmp_path / "exports/mine/prompts.txt").read_text().strip()
    file = folder / "clip.py"
    file.write_text(file.read_text() + "# mine\n")
    init()
    assert "kept" in lines[-1] and "# mine" in file.read_text()
    with pytest.raises(ValueError, match="was planned for .*minutes.: 10.0"):
        init(minutes=20.0)
    init(minutes=20.0, overwrite=True)
    assert "# mine" not in file.read_text()
    with pytest.raises(ValueError, match="--name '../x'"):
        init(name="../x")


def test_a_speed_is_measured():
    assert own_run.measure_speed(64) > 1e6
