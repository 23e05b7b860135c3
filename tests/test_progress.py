"""What is said of how far drawing is, on a clock that the tests turn."""

import io

import pytest

from unclip_jax import progress
from unclip_jax.progress import ProgressLine, StepsOnly, Within


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rows_and_steps_have_estimates(clock):
    stream = io.StringIO()
    line = ProgressLine(stream=stream)

    def after(seconds, call, *args):
        clock[0] += seconds
        call(*args)
        return stream.getvalue().splitlines()[-1]

    assert after(0, line, 0, 12) == "drawing: 0/12, 0 s, compiling"
    after(60, line.step, "decoder", 0, 100)  # has compiled; 2 seconds a step from here
    said = after(20, line.step, "decoder", 10, 100)
    assert said == "drawing: 0/12, 80 s, decoder step 10/100, 180 s left of it"
    assert after(2, line.step, "decoder", 11, 100) == said  # a log hears of it at times
    assert after(178, line, 4, 12) == "drawing: 4/12, 260 s"
    assert after(200, line, 8, 12) == "drawing: 8/12, 460 s, 200 s left"
    assert after(200, line, 12, 12) == "drawing: 12/12, 660 s"


def test_a_part_of_the_rows_counts_on(clock):
    seen = []
    within = Within(lambda *counts: seen.append(counts), 8, 12)
    within(0, 4)
    within(4, 4)
    assert seen == [(12, 12)] and not hasattr(within, "step")
    assert Within(ProgressLine(stream=io.StringIO()), 8, 12).step


def test_work_before_drawing_shows_its_steps_alone(clock):
    stream = io.StringIO()
    before = StepsOnly(ProgressLine(stream=stream))
    before(3, 4)
    assert not stream.getvalue()
    before.step("inversion", 0, 10)
    clock[0] += 20
    before.step("inversion", 5, 10)
    assert "inversion step 5/10, 20 s left of it" in stream.getvalue()
    assert not hasattr(StepsOnly(None), "step")
