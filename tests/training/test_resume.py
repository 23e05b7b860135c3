"""Runs that are interrupted, damaged or finished, and started again."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.environment import ROOT, environment
from tests.training import toy
from tests.training.runs import assert_same, rows, run
from unclip_jax.errors import UsageError
from unclip_jax.training.actions import Previews
from unclip_jax.training.checkpoint import load_run

OPTIMIZER = {"learning_rate": 0.01, "warmup_steps": 2, "grad_clip_norm": 1.0}


def says(workdir):
    run(workdir, stream=(out := io.StringIO()))
    return out.getvalue()


def test_a_finished_run_says_so_and_changes_nothing(finished):
    workdir, state, _ = finished
    out, data = io.StringIO(), toy.Data()
    again = run(workdir, data=data, stream=out)
    assert "finished already" in out.getvalue() and "compil" not in out.getvalue()
    assert data.first_steps == []
    assert_same(again.params, state.params)


@pytest.mark.slow
def test_interrupted_and_resumed_is_bit_identical(finished, tmp_path):
    class Interrupted(toy.Data):
        def batches(self, *args, **kwargs):
            for i, batch in enumerate(super().batches(*args, **kwargs)):
                if i == 6:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    stopped = run(tmp_path / "toy", data=Interrupted())
    assert 0 < int(stopped.step) < 12
    data = toy.Data()
    resumed = run(tmp_path / "toy", data=data)
    assert data.first_steps == [int(stopped.step)]
    assert_same(resumed, finished[1])
    assert [r["step"] for r in rows(tmp_path / "toy")][-1] == 12


@pytest.mark.slow
def test_it_restores_onto_another_mesh(finished, tmp_path):
    half = toy.make_config(steps=8, fsdp=4)
    run(tmp_path / "toy", half)
    whole = toy.make_config(steps=8)
    resumed = run(tmp_path / "toy", whole)  # nothing left to do, other mesh
    straight = run(tmp_path / "straight", toy.make_config(steps=8))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        jax.device_get(resumed.params),
        jax.device_get(straight.params),
    )


def test_more_steps_at_another_rate_when_asked_by_name(finished, tmp_path):
    workdir, state, _ = finished
    shutil.copytree(workdir, tmp_path / "toy")
    longer = toy.make_config(
        steps=14,
        grad_accum=2,
        optimizer={**OPTIMIZER, "learning_rate": 0.0},
    )
    with pytest.raises(UsageError, match=r"=grad_accum,optimizer\.learning_rate,steps"):
        run(tmp_path / "toy", longer)
    with pytest.raises(UsageError, match="--allow_change 'seed': what may change"):
        run(tmp_path / "toy", longer, allow_change=["seed"])
    out, allowed = io.StringIO(), ["steps", "optimizer.learning_rate", "grad_accum"]
    resumed = run(tmp_path / "toy", longer, stream=out, allow_change=allowed)
    assert "config.steps is 14 from step 12 on, it was 12" in out.getvalue()
    assert int(resumed.step) == 14
    assert_same(resumed.params, state.params)  # a rate of 0
    status = json.loads((tmp_path / "toy" / "status.json").read_text())
    assert status == {"step": 14, "steps": 14, "done": True}
    run(tmp_path / "toy", longer)  # it is the run's own config now


def test_fewer_steps_than_were_taken_are_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "toy")
    shorter = toy.make_config(steps=8)
    with pytest.raises(UsageError, match="at step 12 already, beyond config.steps 8"):
        run(tmp_path / "toy", shorter, allow_change=["steps"])
    assert "finished already" in says(tmp_path / "toy")  # by its own config, still
    resumed = run(tmp_path / "toy", shorter, allow_change=["steps"], restore_step=8)
    assert int(resumed.step) == 8


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path / "toy", toy.make_config(steps=4))
    step = tmp_path / "toy" / "checkpoints" / "4"
    for path in (step / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"x")
    with pytest.raises(ValueError, match="checkpoints/4 cannot be restored"):
        run(tmp_path / "toy", toy.make_config(steps=4))


@pytest.mark.slow
def test_an_earlier_checkpoint_is_used_when_asked_for(finished, tmp_path):
    """Only then: the damaged one stops the run, and is kept."""
    workdir = tmp_path / "toy"
    shutil.copytree(finished[0], workdir)
    (workdir / "checkpoints" / "12" / "ema" / "_METADATA").write_text("x")
    with pytest.raises(ValueError, match="12 cannot be restored.*--restore_step=N"):
        run(workdir)
    with pytest.raises(ValueError, match="has no checkpoint 7; it has 8, 12"):
        run(workdir, restore_step=7)
    out = io.StringIO()
    assert_same(run(workdir, restore_step=8, stream=out), finished[1])
    assert "going on from step 8" in out.getvalue()
    assert (workdir / "set_aside_12" / "ema" / "_METADATA").read_text() == "x"
    assert [row["step"] for row in rows(workdir)] == [2, 4, 6, 8, 10, 12]


def test_half_written_checkpoints_do_not_count_and_are_cleaned_up(finished, tmp_path):
    workdir = tmp_path / "toy"
    shutil.copytree(finished[0], workdir)
    folder = workdir / "checkpoints"
    (folder / "12").rename(folder / "12.orbax-checkpoint-tmp-7")
    (folder / "4").mkdir()  # left by a kill in its deletion; Orbax counts it
    resumed = run(workdir)
    assert_same(resumed, finished[1])
    assert sorted(path.name for path in folder.iterdir()) == ["12", "8"]


def test_lost_checkpoints_are_no_reason_to_start_afresh(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "toy")
    shutil.rmtree(tmp_path / "toy" / "checkpoints")
    with pytest.raises(ValueError, match="has no checkpoint any more, but had one"):
        run(tmp_path / "toy")
    assert len(rows(tmp_path / "toy")) == 6


def test_the_status_says_when_a_run_is_done(finished):
    status = json.loads((finished[0] / "status.json").read_text())
    assert status == {"step": 12, "steps": 12, "done": True}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "SIGTERM"])
def test_a_last_preview_that_was_cut_short_is_made_again(
    finished, tmp_path, monkeypatch, how
):
    shutil.copytree(finished[0], tmp_path / "toy")
    (tmp_path / "toy" / "status.json").write_text(
        json.dumps({"step": 12, "steps": 12, "done": False})
    )
    config = toy.make_config(preview={"every": 100, "count": 4})
    draw = Previews.run

    def cut_short(self, step, state):
        if how == "killed":
            raise InterruptedError("a kill leaves no time to say so")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)

    monkeypatch.setattr(Previews, "run", cut_short)
    if how == "killed":
        with pytest.raises(InterruptedError):
            run(tmp_path / "toy", config)
    else:
        out = io.StringIO()
        run(tmp_path / "toy", config, stream=out)
        assert "SIGTERM: saved step 12; start it again" in out.getvalue()
    status = json.loads((tmp_path / "toy" / "status.json").read_text())
    assert status == {"step": 12, "steps": 12, "done": False}
    monkeypatch.setattr(Previews, "run", draw)
    out = io.StringIO()
    state = run(tmp_path / "toy", config, stream=out)
    assert "step 12 is the last: its preview" in out.getvalue()
    assert (tmp_path / "toy" / "previews" / "00000012.png").is_file()
    assert_same(state.params, finished[1].params)
    again = io.StringIO()
    run(tmp_path / "toy", config, stream=again)
    assert "finished already" in again.getvalue()


def test_a_kill_while_the_config_is_written_does_no_harm(tmp_path):
    (tmp_path / ".config.json.0a1b2c3d").write_text('{"stage": "to')
    assert int(run(tmp_path, toy.make_config(steps=2)).step) == 2


def test_ctrl_c_saves_and_stops(tmp_path):
    class Interrupted(toy.Data):
        def batches(self, *args, **kwargs):
            for i, batch in enumerate(super().batches(*args, **kwargs)):
                if i == 6:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "toy", data=Interrupted())
    status = json.loads((tmp_path / "toy" / "status.json").read_text())
    assert 0 < status["step"] < 12 and not status["done"]


@pytest.mark.multiprocess
@pytest.mark.parametrize("devices,fsdp", [(1, 1), (8, 4)])
def test_killed_at_random_and_started_again_is_bit_identical(tmp_path, devices, fsdp):
    """SIGKILL at three random moments; the parameters end as in an unbroken run."""
    steps = 40
    cache = str(tmp_path / "cache")
    env = environment(devices, JAX_COMPILATION_CACHE_DIR=cache)

    def start(workdir, pause):
        command = [sys.executable, str(ROOT / "tests/training/toy.py")]
        return subprocess.Popen(
            [*command, str(workdir), str(fsdp), str(steps), str(pause)],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def finish(process):
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors.decode()[-2000:]

    finish(start(tmp_path / "whole", 0))
    rng = np.random.default_rng(devices)
    broken = tmp_path / "broken"
    for _ in range(3):
        process = start(broken, 0.1)
        metrics, deadline = broken / "metrics.jsonl", time.time() + 60
        before = metrics.read_text() if metrics.exists() else ""
        while process.poll() is None and time.time() < deadline:
            if metrics.exists() and metrics.read_text() != before:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.0))
        process.kill()
        process.wait()
    finish(start(broken, 0))
    for item in ("ema", "params"):
        (a, meta), (b, _) = load_run(tmp_path / "whole", item), load_run(broken, item)
        assert meta["step"] == steps
        assert_same(a, b)
    written = [row["step"] for row in rows(broken)]
    assert written == sorted(set(written)) and written[-1] == steps
