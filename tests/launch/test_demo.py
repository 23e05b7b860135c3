"""The drivers of `make demo` and `make own`, with steps that take no time."""

import importlib.util
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


def load(name):
    """A program of launch/, which finds the others beside itself."""
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lists, demo, own = load("steps"), load("demo"), load("own")


@pytest.fixture(autouse=True)
def same_handlers():
    """Running the list takes the process's signals."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def python(code):
    return (sys.executable, "-c", code)


def step(name, *codes):
    return lists.Step(name, tuple(python(code) for code in codes), 1.0)


@pytest.fixture
def run(tmp_path, capfd):
    """run(steps) -> (exit code, what was shown, the record's content)."""

    def run(steps):
        file = tmp_path / "demo.json"
        code = lists.run(steps, lists.Record(file, steps))
        return code, capfd.readouterr().out, json.loads(file.read_text())

    return run


def test_steps_run_in_order_and_are_recorded(run, tmp_path):
    trace = tmp_path / "trace"
    write = f"open({str(trace)!r}, 'a').write"
    steps = [
        step(
            "first thing",
            f"import time; time.sleep(0.2); {write}('a'); print('step 1/2')",
            f"{write}('b')",
        ),
        step("second", f"{write}('c'); x = bytearray(200_000_000)"),
    ]
    code, shown, record = run(steps)
    assert code == 0
    assert trace.read_text() == "abc"
    assert re.search(
        r"\[1/2\] first thing: .*\nstep 1/2\n.*\[2/2\] second", shown, re.S
    )
    entries = record["steps"]
    assert [entry["done"] for entry in entries.values()] == [True, True]
    assert 0.2 <= entries["first thing"]["seconds"] < 10
    # until it execs, a child counts the pages of the process that forked it: this one
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert 0.2 < entries["second"]["peak_memory_gb"] < max(0.5, own + 0.3)
    assert entries["first thing"]["peak_memory_gb"] < max(0.2, own + 0.1)
    peaks = [entry["peak_memory_gb"] for entry in entries.values()]
    assert record["total"]["peak_memory_gb"] == max(peaks)


def test_a_failure_names_the_step_and_the_next_run_goes_on(run, tmp_path):
    flag = tmp_path / "flag"
    check = f"import os,sys\nok=os.path.exists({str(flag)!r})\nprint('flag', ok)"
    check += "\nsys.exit(0 if ok else 3)"
    steps = [step("one", "pass"), step("two", check), step("three", "pass")]
    code, shown, record = run(steps)
    assert code == 3
    assert "flag False" in shown and "[2/3] two failed" in shown
    assert "[3/3]" not in shown
    assert [e["done"] for e in record["steps"].values()] == [True, False, False]
    spent = record["steps"]["one"]["seconds"]

    flag.touch()
    code, shown, record = run(steps)
    assert code == 0
    assert shown.count("was done already") == 1
    assert record["total"]["done"]
    assert record["steps"]["one"]["runs"] == 1 and record["steps"]["two"]["runs"] == 2
    assert record["steps"]["one"]["seconds"] == pytest.approx(spent, abs=0.5)


def test_another_command_or_config_is_another_step(run, tmp_path):
    config = tmp_path / "config.py"
    config.write_text("1")
    same = lists.Step("one", ((*python("pass"), f"--config={config}"),), 1.0)
    before = same.fingerprint()
    assert same.fingerprint() == before
    config.write_text("2")
    assert same.fingerprint() != before
    run([step("one", "pass")])
    _, shown, record = run([step("one", "print(1)")])
    assert "was done already" not in shown
    assert record["steps"]["one"]["runs"] == 1


def test_a_broken_record_is_begun_anew(run, tmp_path):
    (tmp_path / "demo.json").write_text('{"steps": {"one"')
    code, _, record = run([step("one", "pass")])
    assert code == 0 and record["total"]["done"]


def test_a_missing_program_fails_with_its_name(run):
    code, shown, _ = run([lists.Step("one", (("no-such-program",),), 1.0)])
    assert code == 127 and "no-such-program" in shown


def test_a_killed_step_says_so(run):
    code, shown, _ = run([step("one", "import os; os.kill(os.getpid(), 9)")])
    assert code == 128 + signal.SIGKILL
    assert "memory" in shown


SAVES = """
import pathlib, sys, time
file = pathlib.Path(sys.argv[1])
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    file.write_text(file.read_text() + "saved" if file.exists() else "saved")
    sys.exit(int(sys.argv[2]))
"""
DRIVER = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import steps as lists
command = (sys.executable, "-c", sys.argv[3], sys.argv[2] + "/file", sys.argv[4])
todo = [lists.Step("one", (command,), 1.0), lists.Step("two", (command,), 1.0)]
sys.exit(lists.run(todo, lists.Record(pathlib.Path(sys.argv[2]) / "demo.json", todo)))
"""


def start(command):
    """Starts a driver that heeds Ctrl-C, even if these tests run in the background."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGINT, 0)],
)
def test_an_interrupt_reaches_the_step_once_and_stops_the_list(tmp_path, number, code):
    """Also when the step ends well, as one does that has saved."""
    driver = start([*python(DRIVER), str(LAUNCH), str(tmp_path), SAVES, str(code)])
    while driver.stdout.readline() not in ("ready\n", ""):
        pass
    driver.send_signal(number)
    shown, _ = driver.communicate(timeout=20)
    assert driver.returncode == 130
    assert (tmp_path / "file").read_text() == "saved"
    assert "interrupted" in shown and "[2/2]" not in shown
    record = json.loads((tmp_path / "demo.json").read_text())
    assert not record["steps"]["one"]["done"]


def test_a_second_interrupt_kills_a_step_that_does_not_end(tmp_path):
    stubborn = (
        "import signal, time; signal.signal(2, lambda *_: print('no', flush=True))"
    )
    stubborn += "; print('ready', flush=True); [time.sleep(0.1) for _ in range(600)]"
    driver = start([*python(DRIVER), str(LAUNCH), str(tmp_path), stubborn, "0"])
    for line in ("ready\n", "no\n"):
        while driver.stdout.readline() not in (line, ""):
            pass
        driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=20)
    assert driver.returncode == 130


def test_nohup_is_respected(tmp_path):
    """A signal that is ignored from the start does not stop the list."""
    driver = start(["nohup", *python(DRIVER), str(LAUNCH), str(tmp_path), SAVES, "0"])
    while driver.stdout.readline() not in ("ready\n", ""):
        pass
    driver.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert not (tmp_path / "file").exists()
    driver.send_signal(signal.SIGINT)
    shown, _ = driver.communicate(timeout=20)
    assert shown.count("stopping") == 1


def test_spans():
    assert [lists.span(s) for s in (0, 59.6, 605, 3661)] == [
        "0:00",
        "1:00",
        "10:05",
        "1:01:01",
    ]


def test_every_command_of_the_demo_is_one_of_the_package():
    for item in demo.steps("python"):
        for command in item.commands:
            assert command[:2] == ("python", "-m")
            assert importlib.util.find_spec(command[2]), command[2]
            for word in command:
                if word.startswith("--config="):
                    assert (ROOT / word.removeprefix("--config=")).is_file(), word


def test_dry_run_prints_the_commands_and_makes_nothing(tmp_path):
    before = (ROOT / demo.RUNS).exists()
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
        ["train", "embed", "train", "train"]
        + ["export"] * 3
        + ["sample"] * 6
        + ["evaluate", "report"]
    )
    assert (ROOT / demo.RUNS).exists() == before


def test_the_end_says_the_numbers_and_keeps_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / demo.RECORD
    record = lists.Record(file, [step("one", "pass")])
    assert demo.finish(record, "python") == 1  # no evaluation
    assert "results.json" in capsys.readouterr().out
    scores = {
        name: {"value": 0.5 + 0.1 * i} for i, (name, _) in enumerate(demo.HEADLINES)
    }
    evaluated = tmp_path / demo.RUNS / "eval" / "results.json"
    evaluated.parent.mkdir(parents=True)
    evaluated.write_text(json.dumps({"scores": scores, "provenance": {"n": 224}}))
    assert demo.finish(record, "python") == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("224 captions", " 50.0%", " 60.0%", " 70.0%"))
    kept = json.loads(file.read_text())["results"]
    assert kept == {"n": 224, **{name: s["value"] for name, s in scores.items()}}


def test_own_data_needs_its_configs_first(tmp_path, monkeypatch, capsys):
    flags = "--data=data/mine", "--name=mine", "--minutes=30", "--python=python"
    monkeypatch.chdir(ROOT)  # and back, whatever main does
    assert own.main([*flags, "--dry-run", "--install=make install"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["make", "install"]
    names = [line[2].removeprefix("unclip_jax.") for line in lines[1:]]
    expected = "init train embed train train export export export tune sample evaluate"
    assert names == [*expected.split(), "report"]
    assert all(importlib.util.find_spec(f"unclip_jax.{name}") for name in names)
    assert "--minutes=30" in lines[1]
    monkeypatch.setattr(own, "ROOT", tmp_path)
    assert own.main([*flags, "--python=false"]) == 1  # which ends with 1
    shown = capsys.readouterr().out
    assert "[1/1] init failed" in shown and "train" not in shown


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_environment_is_set_once_and_keeps_what_was_there(shell):
    show = f". {shlex.quote(str(LAUNCH / 'env.sh'))}; " * 2 + "env"
    given = {"PATH": os.environ["PATH"], "HOME": "/home/someone"}
    given |= {"XLA_FLAGS": "--xla_a=1", "GLIBC_TUNABLES": "glibc.malloc.check=0"}
    given |= {"UNCLIP_CPU_DEVICES": "3"}
    run = [shell, "-euc", show]
    done = subprocess.run(run, env=given, capture_output=True, text=True, check=True)
    out = done.stdout
    lines = out.splitlines()
    assert "XLA_FLAGS=--xla_a=1 --xla_force_host_platform_device_count=3" in lines
    assert "GLIBC_TUNABLES=glibc.malloc.check=0:glibc.malloc.hugetlb=1" in lines
    assert "JAX_PLATFORMS=cpu" in lines
    assert not re.search("^unclip_", out, re.M)
