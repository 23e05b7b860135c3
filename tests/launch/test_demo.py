"""The driver of `make demo`, with steps that take no time."""

import importlib.util
import io
import json
import os
import pathlib
import re
import resource
import shlex
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
sys.path.insert(0, str(LAUNCH))
import demo as demo_lib  # noqa: E402
import runner  # noqa: E402

sys.path.remove(str(LAUNCH))


def python(code):
    return (sys.executable, "-c", code)


def step(name, *codes, minutes=1.0, **kwargs):
    return runner.Step(name, tuple(python(code) for code in codes), minutes, **kwargs)


def run(steps, folder):
    """(exit code, what was shown, the record's content)."""
    stream, file = io.StringIO(), folder / "demo.json"
    code = runner.Runner(steps, file, stream).run()
    return code, stream.getvalue(), json.loads(file.read_text())


def test_steps_run_in_order_and_are_recorded(tmp_path):
    trace = tmp_path / "trace"
    write = f"open({str(trace)!r}, 'a').write"
    steps = [
        step("first thing", f"{write}('a'); print('step 1/2')", f"{write}('b')"),
        step("second", f"{write}('c'); x = bytearray(200_000_000)"),
    ]
    code, shown, record = run(steps, tmp_path)
    assert code == 0
    assert trace.read_text() == "abc"
    assert re.search(r"\[1/2\] first thing .*left.*\n.*\[2/2\] second", shown, re.S)
    entries = record["steps"]
    assert [entry["done"] for entry in entries.values()] == [True, True]
    assert entries["first thing"]["seconds"] > 0
    # until it execs, a child counts the pages of the process that forked it: this one
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert 0.2 < entries["second"]["peak_memory_gb"] < max(0.5, own + 0.3)
    assert entries["first thing"]["peak_memory_gb"] < max(0.2, own + 0.1)
    peaks = [entry["peak_memory_gb"] for entry in entries.values()]
    assert record["total"]["peak_memory_gb"] == max(peaks)
    assert "step 1/2" in (tmp_path / "logs" / "first_thing.log").read_text()


def test_a_failure_names_step_and_log_and_the_next_run_goes_on(tmp_path):
    flag = tmp_path / "flag"
    check = f"import os,sys\nok=os.path.exists({str(flag)!r})\nprint('flag', ok)"
    check += "\nsys.exit(0 if ok else 3)"
    steps = [step("one", "pass"), step("two", check), step("three", "pass")]
    code, shown, record = run(steps, tmp_path)
    assert code == 3
    assert "[2/3] two" in shown and "flag False" in shown
    assert str(tmp_path / "logs" / "two.log") in shown
    assert "[3/3]" not in shown
    assert [e["done"] for e in record["steps"].values()] == [True, False, False]
    spent = record["steps"]["one"]["seconds"]

    flag.touch()
    code, shown, record = run(steps, tmp_path)
    assert code == 0
    assert shown.count("was done already") == 1
    assert record["total"]["done"]
    assert record["steps"]["one"]["runs"] == 1 and record["steps"]["two"]["runs"] == 2
    assert record["steps"]["one"]["seconds"] == pytest.approx(spent, abs=0.5)


def test_another_command_or_config_is_another_step(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("1")
    same = runner.Step("one", ((*python("pass"), f"--config={config}"),), 1.0)
    before = runner.fingerprint(same)
    assert runner.fingerprint(same) == before
    config.write_text("2")
    assert runner.fingerprint(same) != before
    run([step("one", "pass")], tmp_path)
    _, shown, record = run([step("one", "print(1)")], tmp_path)
    assert "was done already" not in shown
    assert record["steps"]["one"]["runs"] == 1


def test_a_broken_record_is_begun_anew(tmp_path):
    (tmp_path / "demo.json").write_text('{"steps": {"one"')
    code, _, record = run([step("one", "pass")], tmp_path)
    assert code == 0 and record["total"]["done"]


def test_a_missing_program_fails_with_its_name(tmp_path):
    steps = [runner.Step("one", (("no-such-program",),), 1.0)]
    code, shown, _ = run(steps, tmp_path)
    assert code == 1 and "no-such-program" in shown


def test_a_killed_step_says_so(tmp_path):
    code, shown, _ = run([step("one", "import os; os.kill(os.getpid(), 9)")], tmp_path)
    assert code == 128 + signal.SIGKILL
    assert "memory" in shown


SAVES = """
import pathlib, sys, time
file = pathlib.Path(sys.argv[1])
print("ready", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    file.write_text(file.read_text() + "saved" if file.exists() else "saved")
    sys.exit(130)
"""
DRIVER = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import runner
command = (sys.executable, "-c", sys.argv[3], sys.argv[2] + "/file")
steps = [runner.Step("one", (command,), 1.0), runner.Step("two", (command,), 1.0)]
sys.exit(runner.Runner(steps, pathlib.Path(sys.argv[2]) / "demo.json").run())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_the_step_once_and_stops_the_list(tmp_path, number):
    driver = subprocess.Popen(
        [*python(DRIVER), str(LAUNCH), str(tmp_path), SAVES],
        stdout=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "logs" / "one.log"
    deadline = time.monotonic() + 20
    while not (log.exists() and log.read_text().endswith("ready\n")):
        assert time.monotonic() < deadline, "the step did not start"
        time.sleep(0.05)
    driver.send_signal(number)
    shown, _ = driver.communicate(timeout=20)
    assert driver.returncode == 130
    assert (tmp_path / "file").read_text() == "saved"
    assert "interrupted" in shown and "[2/2]" not in shown
    record = json.loads((tmp_path / "demo.json").read_text())
    assert not record["steps"]["one"]["done"]


@pytest.mark.parametrize(
    "line, expected",
    [
        ("step 120/3000 loss 0.5 310 images/s", 0.04),
        ("step 1,500/3,000", 0.5),
        ("generated: 32 / 224, 12 s left", 32 / 224),
        ("embed 37% 1200 images/s", 0.37),
        ("1234.5/2 images", None),
        ("written: runs/1/2/3.png", None),
        ("Collecting jax", None),
        ("", None),
    ],
)
def test_progress_is_read_from_a_line(line, expected):
    assert runner.fraction(line) == (expected and pytest.approx(expected))


def clock(tmp_path, steps, **seconds):
    record = runner.Record(tmp_path / "demo.json", steps)
    for item in steps:
        if item.name in seconds:
            record.add(item, seconds[item.name], 0.1, True)
    return runner.Clock(steps, record)


def test_time_left_is_scaled_by_the_measured_pace(tmp_path):
    steps = [
        step("install", "", minutes=2.0, paced=False),
        step("a", "", minutes=1.0),
        step("b", "", minutes=3.0),
        step("c", "", minutes=5.0),
    ]
    before = clock(tmp_path, steps)
    assert before.left(steps[0], 0.0) == (120, 120 + 540)
    # a took twice what was expected; how long installing took says nothing
    after = clock(tmp_path, steps, install=1.0, a=120.0)
    assert after.left(steps[2], 60.0) == (300, 300 + 600)
    # more than expected and no word from the program: some, never nothing
    assert after.left(steps[2], 1000.0) == (36, 36 + 600)
    # its own progress, once there is some, is better: 10% in 6 s since it began
    after.progress(100.0, 0.5)
    after.progress(106.0, 0.6)
    after.progress(107.0, None)
    mine, everything = after.left(steps[2], 108.0)
    assert mine == pytest.approx(24 - 2)
    pace = (120 + 108 + 22) / (60 + 180)
    assert everything == pytest.approx(22 + 300 * pace)


def test_a_terminal_gets_two_lines_drawn_anew():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    screen = runner.Screen(terminal)
    screen.status("header " + "x" * 500, "detail")
    screen.line("done")
    first, second, rest = terminal.getvalue().split("\n", 2)
    assert len(first) < 500 and second == "    detail"
    assert rest == "\x1b[1A\x1b[2K" * 2 + "done\n"


def test_spans():
    assert [runner.span(s) for s in (0, 59.6, 605, 3661)] == [
        "0:00",
        "1:00",
        "10:05",
        "1:01:01",
    ]


def test_every_command_of_the_demo_is_one_of_the_package():
    for item in demo_lib.steps("python"):
        for command in item.commands:
            assert command[:2] == ("python", "-m")
            assert importlib.util.find_spec(command[2]), command[2]
            for word in command:
                if word.startswith("--config="):
                    assert (ROOT / word.removeprefix("--config=")).is_file(), word


def test_dry_run_prints_the_commands_and_makes_nothing(tmp_path):
    before = (ROOT / demo_lib.RUNS).exists()
    result = subprocess.run(
        [sys.executable, LAUNCH / "demo.py", "--dry-run", "--install", "make install"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    assert lines[0] == ["make", "install"]
    modules = [line[2].split(".")[1] for line in lines[1:]]
    assert modules == (
        ["train", "embed", "train", "train"] + ["export"] * 3 + ["sample", "evaluate"]
    )
    assert (ROOT / demo_lib.RUNS).exists() == before


def test_the_end_says_the_numbers_and_keeps_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stream, file = io.StringIO(), tmp_path / demo_lib.RUNS / "demo.json"
    demo = runner.Runner([step("one", "pass")], file, stream)
    assert demo.run() == 0
    assert demo_lib.finish(demo, "python") == 1  # no evaluation
    assert "results.json" in stream.getvalue()
    scores = {
        name: {"value": 0.5 + 0.1 * i} for i, (name, _) in enumerate(demo_lib.HEADLINES)
    }
    evaluated = tmp_path / demo_lib.RUNS / "eval" / "results.json"
    evaluated.parent.mkdir()
    evaluated.write_text(json.dumps({"scores": scores, "provenance": {"n": 224}}))
    assert demo_lib.finish(demo, "python") == 0
    shown = stream.getvalue()
    assert all(text in shown for text in ("224 captions", " 50.0%", " 60.0%", " 70.0%"))
    kept = json.loads(file.read_text())["results"]
    assert kept == {"n": 224, **{name: s["value"] for name, s in scores.items()}}


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_environment_is_set_once_and_keeps_what_was_there(shell):
    show = f". {shlex.quote(str(LAUNCH / 'env.sh'))}; " * 2 + "env"
    given = {"PATH": os.environ["PATH"], "HOME": "/home/someone"}
    given |= {"XLA_FLAGS": "--xla_a=1", "GLIBC_TUNABLES": "glibc.malloc.check=0"}
    given |= {"UNCLIP_CPU_DEVICES": "3", "XDG_CACHE_HOME": "/cache"}

    def environment(**more):
        run = [shell, "-euc", show]
        env = {**given, **more}
        done = subprocess.run(run, env=env, capture_output=True, text=True, check=True)
        return done.stdout

    out = environment()
    lines = out.splitlines()
    assert "XLA_FLAGS=--xla_a=1 --xla_force_host_platform_device_count=3" in lines
    assert "GLIBC_TUNABLES=glibc.malloc.check=0:glibc.malloc.hugetlb=1" in lines
    assert "JAX_PLATFORMS=cpu" in lines
    cache = "JAX_COMPILATION_CACHE_DIR=/cache/unclip_jax/jax-"
    assert cache not in out  # several devices: jaxlib cannot read all it wrote
    assert cache in environment(UNCLIP_CPU_DEVICES="1")
    assert not re.search("^unclip_", out, re.M)
