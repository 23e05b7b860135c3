import io
import json
import shutil

import jax
import numpy as np
import pytest

from tests.training import toy
from tests.training.runs import assert_same, rows, run
from unclip_jax.data import order
from unclip_jax.data_spec import DataSpec
from unclip_jax.training.actions import Previews
from unclip_jax.training.checkpoint import load_run
from unclip_jax.training.loop import train


def test_the_loss_falls_and_is_written(finished):
    workdir, _, _ = finished
    written = rows(workdir)
    assert [row["step"] for row in written] == [2, 4, 6, 8, 10, 12]
    assert written[-1]["loss"] < written[0]["loss"]
    wanted = {"loss", "largest", "grad_norm", "images_per_second", "data_wait"}
    wanted |= {"step_seconds", "images_per_second_per_chip", "goodput"}
    assert all(wanted <= set(row) for row in written)
    assert ["compile_seconds" in row for row in written] == [True] + 5 * [False]
    assert not {"mfu", "hbm_gib"} & set(written[0])  # a CPU has no such thing
    for row in written:
        rate = row["images_per_second"]
        assert rate == pytest.approx(16 / row["step_seconds"])
        assert row["images_per_second_per_chip"] == pytest.approx(rate / 8)
        assert 0 < row["goodput"] < 1
    assert list((workdir / "tensorboard").iterdir())
    assert "params/" in (workdir / "sharding.txt").read_text()


def test_the_progress_line_says_where_it_is(finished):
    assert "toy: 12/12  loss" in finished[2] and "left" in finished[2]


def test_the_ema_follows_the_parameters(finished):
    state = finished[1]
    ema, params = state.ema["in"]["kernel"], state.params["in"]["kernel"]
    gap = np.abs(ema - params).max()
    assert 0 < gap < 0.1


def test_load_run_gives_the_ema_and_what_it_is(finished):
    workdir, state, _ = finished
    ema, meta = load_run(workdir)
    assert_same(ema, state.ema)
    params, _ = load_run(workdir, item="params")
    assert_same(params, state.params)
    assert meta["step"] == 12 and meta["stage"] == "toy"
    assert meta["export"] == {"part": "toy", "config": {"width": 32}}
    known = {k: v for k, v in meta["data_info"].items() if v is not None}
    assert known == {"fingerprint": "toy"}  # no arrays or functions
    assert meta["config"]["batch_size"] == 16


def test_accumulated_gradients_are_those_of_the_whole_batch(finished):
    from unclip_jax.training import optimizer, state, train_step

    class Noiseless(toy.Stage):
        def loss(self, params, rng, batch):
            return super().loss(params, jax.random.key(0), batch)

    class Deterministic(toy.Stage):
        def loss(self, params, rng, batch):
            out = batch["x"] @ params["in"]["kernel"] @ params["out"]["kernel"]
            return ((out - batch["x"]) ** 2).mean(), {}

    tx = optimizer.make_optimizer(optimizer.OptimizerConfig(learning_rate=0.01), 10)
    stage, batch = Deterministic(), toy.Data().take(16, ("x",))
    start = state.init_state(stage, tx, jax.random.key(0))
    rng = jax.random.key(1)
    one, four = (
        jax.jit(train_step.make_step(stage, tx, 0.9, accum))(start, rng, batch)
        for accum in (1, 4)
    )
    np.testing.assert_allclose(one[1]["loss"], four[1]["loss"], rtol=1e-6)
    np.testing.assert_allclose(one[1]["grad_norm"], four[1]["grad_norm"], rtol=1e-5)


def test_poisoned_steps_are_skipped_counted_and_their_examples_written(tmp_path):
    config = toy.make_config(max_skipped=3)
    state = run(tmp_path / "toy", config, data=toy.Data(poison={4, 5, 9}))
    assert int(state.skipped) == 3 and int(state.step) == 12
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(jax.device_get(state)))
    counts = [row["skipped_steps"] for row in rows(tmp_path / "toy")]
    assert counts == [0, 0, 2, 2, 3, 3]
    skipped = tmp_path / "toy" / "skipped_steps.jsonl"
    found = [json.loads(line) for line in skipped.read_text().splitlines()]
    assert [row["step"] for row in found] == [5, 6, 10]
    for row in found:  # steps are counted from 1 where people read them
        wanted = order.batch_indices(0, row["step"] - 1, 16, 1000)
        assert row["examples"] == wanted.tolist()


def test_nothing_but_poison_stops_the_run(tmp_path):
    config = toy.make_config(max_skipped=5)
    with pytest.raises(ValueError, match="finite in 5 steps in a row.*up to step 6"):
        run(tmp_path / "toy", config, data=toy.Data(poison=range(100)))
    with pytest.raises(ValueError, match="finite in 2 steps in a row"):  # log_every
        run(tmp_path / "other", data=toy.Data(poison=range(100)))


@pytest.mark.slow
def test_some_steps_are_traced(tmp_path):
    with pytest.raises(ValueError, match="profile_steps=9:5: expected first:last"):
        run(tmp_path / "toy", profile_steps="9:5")
    run(tmp_path / "toy", toy.make_config(steps=4), profile_steps="2:3")
    assert list((tmp_path / "toy" / "profile").rglob("*.xplane.pb"))


def test_previews_are_grids_of_pictures(tmp_path):
    from PIL import Image

    config = toy.make_config(steps=4, preview={"every": 2, "count": 4})
    run(tmp_path / "toy", config)
    names = sorted(p.name for p in (tmp_path / "toy" / "previews").iterdir())
    assert names == ["00000000.png", "00000002.png", "00000004.png"]
    with Image.open(tmp_path / "toy" / "previews" / names[0]) as image:
        assert image.size == (2 * 96, 2 * 96)


def test_previews_of_a_stage_that_draws_nothing_are_refused():
    config = toy.make_config(preview={"every": 2})
    with pytest.raises(ValueError, match="'toy' draws no images: set config.preview"):
        Previews(config, object(), toy.Data(), None, None, None)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"batch_size": 12}, "batch_size 12 is not divisible by 8"),
        ({"steps": 0}, "config.steps must be at least 1"),
        ({"checkpoint": {"every": 0}}, "config.checkpoint.every"),
        ({"checkpoint": {"keep": 0}}, "config.checkpoint.keep must be at least 1"),
        ({"preview": {"every": -1}}, "config.preview.every must be at least 0"),
        ({"optimizer": {"learning_rate": -1.0}}, r"learning_rate must be in \[0, inf"),
        ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate must be in"),
        ({"optimizer": {"learning_rate": 1.0, "b2": 1.0}}, r"b2 must be in \[0, 1\)"),
        ({"ema_decay": 1.0}, "config.ema_decay"),
        ({"mesh": {"data": 3}}, "config.mesh: data=3"),
        ({"optimizer": {"learning_rat": 1.0}}, "did you mean 'learning_rate'"),
        ({"sharding_rules": (("nothing_like_it", ()),)}, "decides nothing"),
        ({"sharding_rules": (("kernel",),)}, r"must be \(regex, axes\), got"),
        ({"sharding_rules": (("kernel", "fsdp"),)}, "must be a tuple, got 'fsdp'"),
        ({"sharding_rules": (("kernel", ({},)),)}, "names the mesh axis {}"),
        ({"sharding_rules": ("kernel", "bias")}, "must be a tuple, got 'kernel'"),
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"max_skipped": 0}, "config.max_skipped must be at least 1"),
        ({"watchdog": {"warn": -1.0}}, "config.watchdog: warn and stop"),
    ],
)
def test_bad_configs_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "toy", toy.make_config(**change))
    assert not (tmp_path / "toy" / "checkpoints").exists() or not list(
        (tmp_path / "toy" / "checkpoints").iterdir()
    )


def test_a_workdir_of_another_config_is_refused(finished):
    workdir = finished[0]
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    other = toy.make_config(ema_decay=0.5)
    with pytest.raises(ValueError, match=r"ema_decay \(0.9 there, 0.5 now\)"):
        run(workdir, other)
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    assert before == after  # nothing written over


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not a run .it has thesis.tex"):
        run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_start_that_is_refused_leaves_the_folder_free(tmp_path):
    class Doubles(toy.Data):
        def _rows(self, *args):
            return super()._rows(*args).astype(np.float64)

    (tmp_path / "toy").mkdir()
    with pytest.raises(ValueError, match="needs examples of.*float32.*gives.*float64"):
        run(tmp_path / "toy", toy.make_config(steps=3), data=Doubles())
    assert not [*(tmp_path / "toy").iterdir()]
    assert int(run(tmp_path / "toy", toy.make_config(steps=2)).step) == 2
    with pytest.raises(ValueError, match="holds a run of another config"):
        run(tmp_path / "toy", toy.make_config(steps=3))
    assert (tmp_path / "toy" / "config.json").is_file()  # what was there stays


def test_other_data_under_a_run_are_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "toy")
    data = toy.Data()
    data.spec = DataSpec(fingerprint="other")
    with pytest.raises(ValueError, match="trained on the data 'toy'.*now they are 'o"):
        run(tmp_path / "toy", data=data)


def test_examples_that_do_not_fit_the_stage_are_refused(tmp_path):
    class Doubles(toy.Data):
        def _rows(self, *args):
            return super()._rows(*args).astype(np.float64)

    with pytest.raises(ValueError, match="needs examples of.*float32.*gives.*float64"):
        run(tmp_path / "toy", data=Doubles())


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
    run(tmp_path / "toy", toy.make_config(steps=4))
    config = tmp_path / "toy" / "config.json"
    other = {**json.loads(config.read_text()), "stage": "prior"}
    config.write_text(json.dumps(other))  # as if another run had been moved there
    with pytest.raises(ValueError, match="of stage 'toy', this config trains 'prior'"):
        run(tmp_path / "toy", toy.make_config(steps=4, stage="prior"))


def test_runs_without_a_checkpoint_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        load_run(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_run_starts_from_given_parameters_once(tmp_path):
    """Parameters and EMA; a resumed run goes on from its own."""
    given = np.arange(512, dtype=np.float32).reshape(16, 32)
    asked = []

    def load_initial(folder, meta):
        asked.append((folder, meta["export"]["part"]))
        return {"in": {"kernel": given}}  # the rest stays as the stage makes it

    def start():
        still = {"learning_rate": 0.0}
        config = toy.make_config(1, 2, init_from="some/folder", optimizer=still)
        return train(
            config,
            tmp_path / "toy",
            stage=toy.Stage(),
            data=toy.Data(),
            stream=io.StringIO(),
            load_initial=load_initial,
        )

    state = start()
    for tree in (state.params, state.ema):
        np.testing.assert_allclose(tree["in"]["kernel"], given, rtol=1e-6)
    assert 0 < np.abs(state.params["out"]["kernel"]).max() < 1
    assert_same(start().params, state.params)
    assert asked == [("some/folder", "toy")]
