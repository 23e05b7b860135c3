"""Starting again until done, and what accelerators are told."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
# Saves a step and ends, as the next line of `plan` says; with -c it is Python itself.
PROGRAM = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exec "$REAL_PYTHON" "$@"; fi
read -r step code <plan
sed -i 1d plan
echo "started $step" >>starts
[ "$step" = wait ] && { trap "echo stopped >>starts; exit 0" TERM
  for i in {1..300}; do sleep 0.1; done; }
[ "$step" = 0 ] || echo "{\\"step\\": $step, \\"done\\": false}" >run/status.json
exit "$code"
"""


def supervise(folder, starts, **env):
    (folder / "run").mkdir()
    (folder / "plan").write_text("".join(f"{s} {c}\n" for s, c in starts))
    (folder / "python").write_text(PROGRAM)
    (folder / "python").chmod(0o755)
    return subprocess.Popen(
        [LAUNCH / "supervise.sh", "./python", "--workdir=run"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "REAL_PYTHON": sys.executable,
            "UNCLIP_PAUSE": "0",
            **env,
        },
    )


def run(folder, starts, **env):
    """(exit code, starts, what was said) of a supervised program."""
    process = supervise(folder, starts, **env)
    said = process.communicate(timeout=120)[1]
    return process.returncode, len((folder / "starts").read_text().splitlines()), said


def test_what_is_done_or_mistaken_is_not_started_again(tmp_path):
    for code in (0, 2):
        folder = tmp_path / str(code)
        folder.mkdir()
        assert run(folder, [(0, code), (0, 0)])[:2] == (code, 1)


@pytest.mark.slow
def test_it_starts_again_while_it_gets_on_and_three_times_when_not(tmp_path):
    starts = [(1, 134), (1, 1), (2, 2), (3, 1), (3, 1), (3, 7), (4, 0)]
    code, count, said = run(tmp_path, starts)
    assert (code, count) == (7, 6)
    assert "ended with 134, at 1; starting again" in said
    assert "3 starts in a row saved nothing new; the last ended with 7" in said


@pytest.mark.slow
def test_shards_of_records_are_progress_too(tmp_path):
    (tmp_path / "run" / "train").mkdir(parents=True)
    (tmp_path / "run" / "train" / "shard-0.array_record").write_text("")
    (tmp_path / "run").rename(tmp_path / "kept")
    process = supervise(tmp_path, [(0, 1), (0, 1), (0, 0)], UNCLIP_TRIES="2")
    (tmp_path / "run").rmdir()
    (tmp_path / "kept").rename(tmp_path / "run")
    assert "at 1; starting again" in process.communicate(timeout=60)[1]
    assert process.returncode == 1


def test_sigterm_is_passed_on_and_ends_it(tmp_path):
    process = supervise(tmp_path, [("wait", 0), (0, 0)])
    for _ in range(100):
        if (tmp_path / "starts").exists():
            break
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert (tmp_path / "starts").read_text() == "started wait\nstopped\n"


def told(kind, workdir="gs://b/runs/prior", **env):
    """The environment after accelerator.sh."""
    script = f". {LAUNCH}/accelerator.sh {kind} {shlex.quote(workdir)} && env"
    env = {"PATH": os.environ["PATH"], **env}
    said = subprocess.check_output(["bash", "-euc", script], text=True, env=env)
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def test_hosts_share_what_they_compiled():
    assert told("tpu")["JAX_COMPILATION_CACHE_DIR"] == "gs://b/runs/compile_cache"
    assert told("gpu", "runs/prior")["JAX_COMPILATION_CACHE_DIR"] == (
        "runs/compile_cache"
    )
    mine = told("gpu", JAX_COMPILATION_CACHE_DIR="mine", XLA_FLAGS="--xla_x=1")
    assert mine["JAX_COMPILATION_CACHE_DIR"] == "mine"
    assert mine["XLA_FLAGS"].split()[0] == "--xla_x=1"
    assert "XLA_FLAGS" not in told("tpu") and "LIBTPU_INIT_ARGS" not in told("tpu")
    off = "--xla_gpu_enable_latency_hiding_scheduler=false"
    assert told("gpu", XLA_FLAGS=off)["XLA_FLAGS"] == off


@pytest.mark.slow
def test_the_installed_compiler_knows_the_flags_of_gpus():
    """XLA aborts on a flag that it does not know."""

    def start(flags):
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        command = [sys.executable, "-c", "import jax; jax.devices()"]
        return subprocess.run(command, env=env, capture_output=True).returncode

    assert start("--xla_gpu_no_such_flag=true") != 0
    assert start(told("gpu")["XLA_FLAGS"]) == 0


@pytest.mark.slow
def test_the_installed_libtpu_knows_the_flags_of_several_slices():
    pytest.importorskip("libtpu")
    flags = told("tpu", MEGASCALE_NUM_SLICES="2")["LIBTPU_INIT_ARGS"]
    assert flags.count("--") == 2
    code = (
        "from jax.experimental import topologies\n"
        "topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2')"
    )

    def start(flags):
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
        command = [sys.executable, "-c", code]
        env["LIBTPU_INIT_ARGS"] = flags
        return subprocess.run(command, env=env, capture_output=True).returncode

    assert start("--xla_tpu_no_such_flag=true") != 0
    assert start(flags) == 0
