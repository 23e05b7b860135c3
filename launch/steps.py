"""Runs a list of commands, resumably: what `make demo` and `make own` share.

A finished step finds its work done and ends at once, an interrupted one goes on from
where it was. Standard library only: it runs before anything is installed.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Step:
    """Commands under one name, and how long they are expected to take."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    minutes: float

    def fingerprint(self) -> str:
        """Of the commands and of the config files they name."""
        digest = hashlib.sha256(json.dumps(self.commands).encode())
        for word in (word for command in self.commands for word in command):
            path = pathlib.Path(word.removeprefix("--config="))
            if word.startswith("--config=") and path.is_file():
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


class Record:
    """A json file: what each step took, over all runs of the list."""

    def __init__(self, file: pathlib.Path, steps: Sequence[Step]):
        self._file = file
        try:
            old = json.loads(file.read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError):
            old = {}  # nothing was measured yet
        new = dict(done=False, seconds=0.0, runs=0, peak_memory_gb=0.0)
        self.steps = {}
        for step in steps:
            entry, fingerprint = old.get(step.name, {}), step.fingerprint()
            if entry.get("fingerprint") != fingerprint:
                entry = {**new, "fingerprint": fingerprint}
            self.steps[step.name] = entry

    def add(self, step: Step, seconds: float, memory: float, done: bool) -> None:
        """Adds a run of a step: its seconds, and its peak memory in GB."""
        entry = self.steps[step.name]
        if entry["done"]:  # looking again is not counted, doing it all again is
            entry["seconds"] = max(entry["seconds"], round(seconds, 1))
        else:
            entry["seconds"] = round(entry["seconds"] + seconds, 1)
            entry["runs"] += 1
        entry["done"] |= done
        entry["peak_memory_gb"] = round(max(entry["peak_memory_gb"], memory), 2)
        self.write()

    def totals(self) -> dict:
        """Of all steps: whether they are done, their seconds, the peak memory in GB."""
        entries = self.steps.values()
        return {
            "done": all(entry["done"] for entry in entries),
            "seconds": round(sum(entry["seconds"] for entry in entries), 1),
            "peak_memory_gb": max(entry["peak_memory_gb"] for entry in entries),
        }

    def write(self, **more) -> None:
        """Writes the file at once and whole."""
        content = {
            "format": "unclip_jax steps",
            "version": 1,
            "cores": os.cpu_count(),
            "total": self.totals(),
            "steps": self.steps,
            **more,
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        part.replace(self._file)


class Interrupts:
    """Passes the first Ctrl-C on to the running command; a second one kills it.

    The command saves what it has to before it ends.
    """

    def __init__(self):
        self.seen, self.process = 0, None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # under nohup
                signal.signal(number, self._pass_on)

    def _pass_on(self, number, frame):
        self.seen += 1
        if self.process is not None:
            print("\nstopping; Ctrl-C again kills it", flush=True)
            kind = signal.SIGINT if self.seen == 1 else signal.SIGKILL
            os.killpg(self.process.pid, kind)

    def run(self, command: tuple[str, ...]) -> tuple[int, float]:
        """(exit code as a shell would give it, peak memory in GB) of a command."""
        if self.seen:
            return 130, 0.0
        # make's own variables would reach a make that is a step
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        try:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, process_group=0
            )
        except OSError as error:
            print(f"error: {error}", flush=True)
            return 127, 0.0
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = code = os.waitstatus_to_exitcode(status)
        self.process = None
        kilobyte = 1 if sys.platform == "darwin" else 1024
        return code if code >= 0 else 128 - code, usage.ru_maxrss * kilobyte / 1e9


def run(steps: Sequence[Step], record: Record) -> int:
    """Runs all steps in order, until one fails; returns the exit code."""
    interrupts = Interrupts()
    for number, step in enumerate(steps, start=1):
        title = f"[{number}/{len(steps)}] {step.name}"
        done_before = record.steps[step.name]["done"]
        expected = f"about {step.minutes:.2g} minutes"
        print(f"{title}: {'was done already' if done_before else expected}", flush=True)
        begin, code, peak = time.monotonic(), 0, 0.0
        for command in step.commands:
            code, memory = interrupts.run(command)
            peak = max(peak, memory)
            if code or interrupts.seen:
                break
        seconds = time.monotonic() - begin
        record.add(step, seconds, peak, done=not (code or interrupts.seen))
        if interrupts.seen:
            print(f"{title} interrupted; the same command goes on from here")
            return 130
        if code:
            print(f"{title} failed: {shlex.join(command)} ended with {code}")
            if code == 128 + signal.SIGKILL:
                print("It was killed from outside: often, too little memory was left.")
            print("The same command goes on from this step.")
            return code
        print(f"{title}: {span(seconds)}, peak {peak:.1f} GB\n", flush=True)
    return 0


def span(seconds: float) -> str:
    """Formats a time as "4:07" or "1:02:30"."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def module(python: str, name: str, *options: str) -> tuple[str, ...]:
    """The command `python -m unclip_jax.NAME` with options."""
    return (python, "-m", f"unclip_jax.{name}", *options)


def train(python: str, configs: str, runs: str, stage: str):
    """The commands that train a stage."""
    options = f"--config={configs}/{stage}.py", f"--workdir={runs}/{stage}"
    return (module(python, "train", *options),)


def export(
    python: str, runs: str, folder: str, stages: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """The commands that export stages."""
    return tuple(
        module(python, "export", f"--run={runs}/{stage}", f"--out={folder}")
        for stage in stages
    )


def parser(doc: str) -> argparse.ArgumentParser:
    """The flags that all lists have."""
    flags = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--python", default=".venv/bin/python", help="runs the steps")
    flags.add_argument("--install", default="", help="a first step: this command")
    flags.add_argument("--dry-run", action="store_true", help="only say what would run")
    return flags


def install_step(command: str) -> list[Step]:
    """The step that makes python's environment, if there is a command for it."""
    return [Step("install", (tuple(shlex.split(command)),), 2.0)] if command else []


def print_commands(steps: Sequence[Step]) -> int:
    """Prints what would run; returns the exit code."""
    for step in steps:
        for command in step.commands:
            print(shlex.join(command))
    return 0
