"""A few random kills, and everything else that may happen to a run."""

import subprocess
import sys

import pytest

from tests.environment import environment


@pytest.mark.multiprocess
def test_runs_survive_kills_and_other_faults(tmp_path):
    report = tmp_path / "report.md"
    report.write_text(
        "before\n<!-- kills: begin -->\nold\n<!-- kills: end -->\nafter\n"
    )
    command = [sys.executable, "-m", "tests.soak", "--kills=8", "--stopped=1"]
    done = subprocess.run(
        [*command, f"--folder={tmp_path / 'soak'}", f"--report={report}"],
        env=environment(1),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clock_goes_back: as it should be" in done.stdout
    text = report.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "8 kills in" in text and "old" not in text.split("deleting")[0]
