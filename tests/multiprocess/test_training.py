"""Runs of several processes on this machine, with real signals."""

import json
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.environment import ROOT, environment
from unclip_jax.training.checkpoint import load_run

pytestmark = pytest.mark.multiprocess
TOY = ROOT / "tests" / "training" / "toy.py"


def free_port() -> int:
    """Such that the next port is free as well."""
    while True:
        with socket.socket() as a, socket.socket() as b:
            a.bind(("", 0))
            port = a.getsockname()[1]
            try:
                b.bind(("", port + 1))
            except OSError:
                continue
            return port


def on_a_machine_of_its_own(tmp_path, number):
    """Words before a command, which then sees another boot_id: XLA tells machines, and
    with them the slice_index of their devices, apart by it."""
    file = tmp_path / f"boot_id_{number}"
    file.write_text(f"{number:08d}-0000-4000-8000-000000000000\n")
    script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(file)]


def start(
    workdir,
    processes,
    devices,
    steps=12,
    fsdp=4,
    pause=0.0,
    only=None,
    prefix=lambda number: [],
):
    """Popen objects of the processes (or of those in `only`) of one run."""
    command = [sys.executable, str(TOY), str(workdir), str(fsdp), str(steps)]
    command.append(str(pause))
    if processes > 1:
        command += [f"localhost:{free_port()}", str(processes)]
    return [
        subprocess.Popen(
            [*prefix(i), *command] + [str(i)] * (processes > 1),
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in (range(processes) if only is None else only)
    ]


def finish(running, timeout=80):
    """[(exit code, output)] of the processes."""
    try:
        outputs = [p.communicate(timeout=timeout)[0] for p in running]
    finally:
        for p in running:
            p.kill()
    return [(p.returncode, out) for p, out in zip(running, outputs, strict=True)]


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def wait_for(workdir, step, seconds=70):
    """Until the run has logged the step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = workdir / "metrics.jsonl"
        if path.is_file() and max(losses(workdir), default=0) >= step:
            return
        time.sleep(0.1)
    raise AssertionError(f"step {step} was not reached in {seconds} s")


def assert_close(a, b, rtol):
    def compare(x, y):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7)

    jax.tree.map(compare, a, b)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of an unbroken run: one process, 8 devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ((code, out),) = finish(start(workdir, 1, 8))
    assert code == 0, out
    return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The same of two processes with 4 devices each."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    for code, out in finish(start(workdir, 2, 4)):
        assert code == 0, out
    return workdir


def test_two_processes_do_what_one_does(alone, together):
    """Not to the last bit: sums over hosts are made in another order than within."""
    ours, theirs = losses(together), losses(alone)
    assert ours.keys() == theirs.keys()
    for step, loss in theirs.items():
        assert ours[step] == pytest.approx(loss, rel=1e-6), step
    (a, meta), (b, _) = (load_run(w, item="ema") for w in (together, alone))
    assert_close(a, b, 1e-5)
    assert meta["step"] == 12


def test_fsdp_spans_two_machines(alone, tmp_path):
    """Which are told apart, as those of a GPU cluster are."""

    def prefix(number):
        return on_a_machine_of_its_own(tmp_path, number)

    can_mount = subprocess.run([*prefix(0), "true"], capture_output=True)
    if can_mount.returncode:
        pytest.skip("needs root and CAP_SYS_ADMIN, to mount another boot_id")
    for code, out in finish(start(tmp_path / "run", 2, 4, fsdp=8, prefix=prefix)):
        assert code == 0, out
    for step, loss in losses(alone).items():
        assert losses(tmp_path / "run")[step] == pytest.approx(loss, rel=1e-6), step


def test_sigterm_to_one_saves_the_same_step_on_both(tmp_path, together):
    running = start(tmp_path / "run", 2, 4, steps=12, pause=1.0)
    wait_for(tmp_path / "run", 4)
    running[1].send_signal(signal.SIGTERM)
    for code, out in finish(running):
        assert code == 0, out
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert 4 <= status["step"] < 12 and not status["done"]
    # two processes go on as if nothing had happened, bit for bit
    for code, out in finish(start(tmp_path / "run", 2, 4)):
        assert code == 0, out
    (a, _), (b, _) = (load_run(w, item="ema") for w in (tmp_path / "run", together))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_process_whose_data_is_slow_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_SLOW", "1")
    finished = finish(start(tmp_path / "run", 2, 1, steps=16, fsdp=1, pause=1.0))
    for code, out in finished:
        assert code == 0, out
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][-3:]  # what was read ahead is used up
    assert all(row["data_wait_process"] == 1 for row in rows)
    assert all(row["data_wait"] > 0.5 and row["goodput"] < 0.5 for row in rows)
    assert "of process 1  " in finished[0][1]


@pytest.mark.parametrize("moment", ["loss", "embed"])
def test_sigterm_while_compiling_or_evaluating(tmp_path, monkeypatch, moment):
    """To one of two: both stop at the same place, saved, with exit code 0."""
    monkeypatch.setenv("TOY_SIGTERM_IN", moment)
    finished = finish(start(tmp_path / "run", 2, 4, pause=0.5))
    for code, out in finished:
        assert code == 0, out
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert f"SIGTERM: saved step {status['step']}" in finished[0][1]
    # steps of a toy are shorter than the time in which the processes agree on one
    assert status["step"] < 12 and not status["done"]


def test_a_killed_process_ends_the_other_and_the_run_goes_on(tmp_path, together):
    workdir = tmp_path / "run"
    running = start(workdir, 2, 4, pause=0.5)
    wait_for(workdir, 6)
    running[1].kill()
    began = time.monotonic()
    (code, out), _ = finish(running, timeout=40)
    assert time.monotonic() - began < 30
    # the broken connection is noticed first, or the missing heartbeat (jax then aborts)
    lost = "another process of the run was lost", "The tasks have crashed"
    assert code != 0 and any(text in out for text in lost), out
    # on one process with half the devices: what was saved goes on
    ((code, out),) = finish(start(workdir, 1, 4))
    assert code == 0 and "going on from step 4" in out, out
    (a, _), (b, _) = (load_run(w, item="ema") for w in (workdir, together))
    assert_close(a, b, 1e-5)


def test_a_missing_process_is_named(tmp_path):
    (running,) = start(tmp_path / "run", 3, 2, only=[0])
    ((code, out),) = finish([running])
    assert code != 0
    assert "of the 3 processes of the run, number 1, 2 did not start within" in out
