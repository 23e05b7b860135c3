"""A run that hangs says what it waits for; a loader that really blocks."""

import io
import re
import subprocess
import sys
import textwrap
import time

import pytest

from tests.environment import environment
from tests.training import toy


@pytest.mark.multiprocess
def test_a_run_whose_data_hang_ends_with_an_error_and_stacks(tmp_path):
    code = """
    import sys, threading
    from tests.training import toy
    from unclip_jax.training.loop import train

    class Blocked(toy.Data):
        def batches(self, *args, **kwargs):
            for i, batch in enumerate(super().batches(*args, **kwargs)):
                if i == 7:
                    self.wait_for_a_disk_that_never_answers()
                yield batch

        def wait_for_a_disk_that_never_answers(self):
            threading.Event().wait()

    config = toy.make_config(watchdog={"warn": 1.0, "stop": 10.0})
    train(config, sys.argv[1], stage=toy.Stage(), data=Blocked())
    """
    workdir = tmp_path / "toy"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(workdir)],
        env=environment(8),
        capture_output=True,
        text=True,
        timeout=120,
    )
    errors = done.stderr
    assert done.returncode == 1, errors[-3000:]
    # the eighth batch never comes; those before it were ready
    assert re.search(r"watchdog: waiting for the data, at step 8 since \d+ s", errors)
    assert re.search(r"error: hung: waited 1\d s for the data, at step 8", errors)
    stacks = (workdir / "hung" / "process-0.txt").read_text()
    for text in (errors, stacks):
        assert "wait_for_a_disk_that_never_answers" in text
    assert (workdir / "checkpoints" / "4").is_dir()  # to go on from


@pytest.mark.slow
def test_a_run_whose_data_come_late_goes_on(tmp_path, capsys):
    from unclip_jax.training.loop import train

    class Late(toy.Data):
        def batches(self, *args, **kwargs):
            for i, batch in enumerate(super().batches(*args, **kwargs)):
                time.sleep(1.5 if i == 7 else 0)
                yield batch

    config = toy.make_config(watchdog={"warn": 0.5, "stop": 60.0})
    out = io.StringIO()
    state = train(config, tmp_path / "toy", stage=toy.Stage(), data=Late(), stream=out)
    assert int(state.step) == 12
    errors = capsys.readouterr().err
    assert "watchdog: waiting for the data, at step 8" in errors
    assert "watchdog: the data, at step 8 came" in errors and "error" not in errors
