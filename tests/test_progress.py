"""What is said of how far work is, on a clock that the tests turn."""

import io

import pytest

from unclip_jax import progress
from unclip_jax.errors import UsageError
from unclip_jax.progress import (
    ProgressBar,
    ProgressLine,
    StepsOnly,
    Within,
    as_progress,
    duration,
)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def turn(clock, stream):
    def after(seconds, call, *args):
        """The last line, `seconds` later, after call(*args)."""
        clock[0] += seconds
        call(*args)
        return stream.getvalue().splitlines()[-1]

    return after


def test_rows_and_steps_have_estimates_that_leave_compiling_out(clock):
    stream = io.StringIO()
    line, after = ProgressLine("drawing", stream=stream), turn(clock, stream)
    assert after(0, line, 0, 12) == "drawing: 0/12 images, 0s, compiling"
    after(60, line.step, "decoder", 0, 100)  # has compiled; 2 seconds a step from here
    said = after(20, line.step, "decoder", 10, 100)
    assert said == "drawing: 0/12 images, 1m20s, decoder step 10/100, 3m00s left of it"
    assert after(2, line.step, "decoder", 11, 100) == said  # a log hears of it at times
    assert after(178, line, 4, 12) == "drawing: 4/12 images, 4m20s"
    said = after(200, line, 8, 12)
    assert said == "drawing: 8/12 images, 7m40s, 0.02/s, 3m20s left"
    assert after(200, line, 12, 12) == "drawing: 12/12 images, 11m00s, 0.02/s"


def test_what_an_earlier_run_did_counts_for_the_rows_alone(clock):
    stream = io.StringIO()
    line, after = ProgressLine("embedding", "examples", stream), turn(clock, stream)
    assert after(0, line, 1000, 5000) == (
        "embedding: 1,000/5,000 examples, 0s, compiling"
    )
    assert after(30, line.add, 1000) == "embedding: 2,000/5,000 examples, 30s"
    assert after(20, line.add, 1000) == (
        "embedding: 3,000/5,000 examples, 50s, 50/s, 40s left"
    )
    count = len(stream.getvalue().splitlines())
    after(5, line.add, 1000)  # too soon after the last line
    after(1, line.add, 0)
    assert len(stream.getvalue().splitlines()) == count
    assert after(1, line.add, 1000).startswith("embedding: 5,000/5,000")  # the end is


def test_a_terminals_line_is_rewritten(clock):
    stream = Terminal()
    line = ProgressLine("prior", stream=stream)
    line.show("1/3")
    line.show("2/3")  # just now: left out
    clock[0] += 1
    line.show("2/3")
    line.say("saved")
    line.show("3/3", last=True)
    first, second, third = (f"\rprior: {n}/3".ljust(80) for n in (1, 2, 3))
    assert stream.getvalue() == f"{first}{second}\nprior: saved\n{third}\n"


@pytest.mark.parametrize(
    "seconds, text",
    [(-1, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (7800, "2h10m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_part_of_the_rows_counts_on(clock):
    seen = []
    within = Within(lambda *counts: seen.append(counts), 8, 12)
    within(0, 4)
    within(4, 4)
    assert seen == [(12, 12)] and not hasattr(within, "step")
    assert Within(ProgressLine("drawing", stream=io.StringIO()), 8, 12).step


def test_work_before_drawing_shows_its_steps_alone(clock):
    stream = io.StringIO()
    before = StepsOnly(ProgressLine("drawing", stream=stream))
    before(3, 4)
    assert not stream.getvalue()
    before.step("inversion", 0, 10)
    clock[0] += 20
    before.step("inversion", 5, 10)
    assert "inversion step 5/10, 20s left of it" in stream.getvalue()
    assert not hasattr(StepsOnly(None), "step")


def test_a_notebook_rewrites_the_line_too(clock):
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    line = ProgressLine("drawing", stream=stream)
    line(0, 4)
    clock[0] += 1
    line(2, 4)
    assert stream.getvalue().count("\r") == 2 and "\n" not in stream.getvalue()


def test_a_bar_shows_the_steps_of_each_loop(capsys):
    bar = ProgressBar("drawing")
    bar(0, 6)
    for done in (4, 6):  # two batches
        for loop in ("prior", "decoder"):
            for step in range(5):
                bar.step(loop, step, 5)
        bar(done, 6)
    shown = capsys.readouterr().err.split("\r")
    assert "0/6" in shown[1] and "drawing:" in shown[1]
    assert any("drawing: prior:   0%" in line and "0/5" in line for line in shown)
    assert "drawing: decoder: 100%" in shown[-1] and "5/5" in shown[-1]
    assert "6 of 6" in shown[-1] and shown[-1].endswith("\n")


def test_a_bar_without_loops_is_of_the_rows(capsys):
    bar = ProgressBar("encoding")
    for done in (0, 2, 4):
        bar(done, 4)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "encoding: 100%" in last and "4/4" in last


def test_who_watches_sees_a_bar(monkeypatch):
    def shown(*args, **options):
        return isinstance(as_progress(*args, **options), ProgressBar)

    assert shown(True) and not shown(False) and not shown(None)
    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    assert shown(None) and not shown(False) and not shown(None, by_default=False)
    line = ProgressLine("drawing", stream=io.StringIO())
    assert as_progress(line) is line
    with pytest.raises(UsageError, match="progress is 'yes': expected True, False"):
        as_progress("yes")
