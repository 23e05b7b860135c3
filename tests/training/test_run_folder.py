"""A folder is one run's at a time, and damaged files in it are named."""

import signal
import subprocess
import sys
import threading

import pytest

from tests.environment import environment
from tests.training import toy
from unclip_jax.config import to_plain
from unclip_jax.errors import UsageError
from unclip_jax.training import run_folder

CONFIG = to_plain(toy.make_config())
HOLDER = """
import sys, time
from tests.training import toy
from unclip_jax.config import to_plain
from unclip_jax.training.run_folder import Claim
with Claim(sys.argv[1], to_plain(toy.make_config())):
    print("mine", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.3)
    with run_folder.Claim(tmp_path, CONFIG):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UsageError, match=r"in use by another run \(process \d+ on"):
            run_folder.Claim(tmp_path, CONFIG)
        assert sorted(tmp_path.iterdir()) == before
    with run_folder.Claim(tmp_path, CONFIG):
        pass


def test_a_start_that_is_refused_leaves_nothing_for_the_next(tmp_path):
    with pytest.raises(ValueError, match="no data"), run_folder.Claim(tmp_path, CONFIG):
        raise ValueError("no data")
    assert not list(tmp_path.iterdir())


def test_a_start_waits_for_the_process_that_is_ending(tmp_path):
    first = run_folder.Claim(tmp_path, CONFIG)
    threading.Timer(0.5, first.__exit__, (None, None, None)).start()
    with run_folder.Claim(tmp_path, CONFIG):
        pass


@pytest.mark.multiprocess
def test_a_killed_process_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.3)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, env=environment(1), stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "mine\n"
        with pytest.raises(UsageError, match=f"process {holder.pid} on"):
            run_folder.Claim(tmp_path, CONFIG)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with run_folder.Claim(tmp_path, CONFIG):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", "\0", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "status.json"])
def test_damaged_files_are_named(tmp_path, name, content):
    run_folder.claim(tmp_path, CONFIG)
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=f"{name}( is not JSON|: expected settings)"):
        run_folder.read_config(tmp_path)
        run_folder.read_status(tmp_path)


@pytest.mark.parametrize("status", ['{"step": "7"}', '{"step": 7, "done": 0}'])
def test_an_impossible_status_is_named(tmp_path, status):
    (tmp_path / "status.json").write_text(status)
    with pytest.raises(UsageError, match=r"status\.json is damaged.* remove it"):
        run_folder.read_status(tmp_path)


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    (tmp_path / "previews").mkdir()
    run_folder.claim(tmp_path / "x", CONFIG)
    (tmp_path / "config.json").write_bytes((tmp_path / "x/config.json").read_bytes())
    litter = [".goodput.json.0123abcd.partial", "previews/.00000004.png.01.partial"]
    for name in litter:
        (tmp_path / name).write_text("half")
    with run_folder.Claim(tmp_path, CONFIG) as claim:
        claim.remove_partials()
    assert not any((tmp_path / name).exists() for name in litter)
