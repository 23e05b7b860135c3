"""Runs a list of commands, says at every moment how far it is, and can be stopped.

Each step is one or more commands in processes of their own, which must find for
themselves what of their work is done: to go on, the whole list is run again. Standard
library only: it runs before anything is installed.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time


@dataclasses.dataclass(frozen=True)
class Step:
    """One line of the list.

    Attributes:
      name: shown, and the name of its log.
      commands: run one after the other.
      minutes: expected on two cores; the measured pace of earlier steps scales it.
      paced: whether its time tells of the others' (installing does not).
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    minutes: float
    paced: bool = True


class Screen:
    """Finished lines, and below them, on a terminal, two that are drawn anew."""

    def __init__(self, stream, every: float = 20.0):
        self._stream, self._live = stream, 0
        self._tty = stream.isatty()
        self._every, self._last = every, float("-inf")

    def line(self, text: str) -> None:
        self._clear()
        print(text, file=self._stream, flush=True)
        self._last = float("-inf")  # what comes next is news

    def status(self, header: str, detail: str) -> None:
        """Shows where we are; in a log file, only now and then."""
        now = time.monotonic()
        if now - self._last < (0.5 if self._tty else self._every):
            return
        self._last = now
        if not self._tty:
            print(f"{header} | {detail}", file=self._stream, flush=True)
            return
        self._clear()
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"{header[:width]}\n{'    ' + detail:.{width}}\n")
        self._stream.flush()
        self._live = 2

    def _clear(self) -> None:
        self._stream.write("\x1b[1A\x1b[2K" * self._live)
        self._live = 0


def fraction(line: str) -> float | None:
    """How far a program is, from its progress line: "step 120/3000", "embed 7%"."""
    for match in re.finditer(r"(?<![\w./])(\d[\d,_]*) ?/ ?(\d[\d,_]*)(?![\w./])", line):
        done, total = (int(re.sub("[,_]", "", text)) for text in match.groups())
        if total > 1 and done <= total:
            return done / total
    match = re.search(r"\b(\d{1,3})(\.\d+)?%", line)
    return min(float(match[1]), 100) / 100 if match else None


class Clock:
    """How long everything will take: expected minutes, scaled by what was measured."""

    def __init__(self, steps: list[Step], record: "Record"):
        self._steps, self._record = steps, record
        self.start()

    def start(self) -> None:
        """A command starts: its progress is read afresh."""
        self._first = self._latest = None  # (seconds, share done)

    def progress(self, elapsed: float, done: float | None) -> None:
        """Takes the program's own account of how far it is, in [0, 1], or None."""
        if done is None:
            return
        if self._first is None or done < self._latest[1]:  # it counts something new
            self._first = self._latest = (elapsed, done)
        elif done > self._latest[1]:
            self._latest = (elapsed, done)

    def left(self, step: Step, elapsed: float) -> tuple[float, float]:
        """Seconds left of the running step, `elapsed` old, and of everything."""
        pairs = [
            (self._record.seconds(other), 60 * other.minutes)
            for other in self._steps
            if other.paced and self._record.done(other)
        ]
        mine = self._own_estimate(step, elapsed)
        if mine is not None and step.paced and not self._record.done(step):
            before = self._record.seconds(step)  # of runs that were interrupted
            pairs.append((before + elapsed + mine, 60 * step.minutes))
        pace = sum(p[0] for p in pairs) / sum(p[1] for p in pairs) if pairs else 1.0
        if mine is None:
            expected = self._expected(step, pace)
            mine = max(expected - elapsed, 0.1 * expected)
        later = self._steps[self._steps.index(step) + 1 :]
        return mine, mine + sum(self._expected(other, pace) for other in later)

    def _own_estimate(self, step, elapsed) -> float | None:
        """From the speed of the program's own progress since it was first seen."""
        if self._first is None or len(step.commands) > 1:
            return None
        since, start = self._first
        now, done = self._latest
        if done - start < 0.01 or now - since < 5:
            return None
        left = (1 - done) / (done - start) * (now - since)
        return max(left - (elapsed - now), 0.0)

    def _expected(self, step: Step, pace: float) -> float:
        if self._record.done(step):  # it only looks whether all is there
            return min(self._record.seconds(step), 10.0)
        return 60 * step.minutes * (pace if step.paced else 1.0)


class Record:
    """A json file: what each step took, over all runs of the list."""

    def __init__(self, file: pathlib.Path, steps: list[Step]):
        self._file = file
        try:
            old = json.loads(file.read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError):
            old = {}  # nothing was measured yet
        self._steps = {}
        for step in steps:
            entry = old.get(step.name, {})
            if entry.get("fingerprint") != fingerprint(step):
                entry = dict(done=False, seconds=0.0, runs=0, peak_memory_gb=0.0)
            self._steps[step.name] = {**entry, "fingerprint": fingerprint(step)}

    def done(self, step: Step) -> bool:
        return self._steps[step.name]["done"]

    def seconds(self, step: Step) -> float:
        return self._steps[step.name]["seconds"]

    def add(self, step: Step, seconds: float, memory: float, done: bool) -> bool:
        """Adds a run; returns whether the step had been done before it."""
        entry = self._steps[step.name]
        before = entry["done"]
        if before:  # looking again is not counted, doing it all again is
            entry["seconds"] = max(entry["seconds"], round(seconds, 1))
        else:
            entry["seconds"] = round(entry["seconds"] + seconds, 1)
            entry["runs"] += 1
        entry["done"] = before or done
        entry["peak_memory_gb"] = round(max(entry["peak_memory_gb"], memory), 2)
        self.write()
        return before

    def totals(self) -> dict:
        entries = self._steps.values()
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
            "steps": self._steps,
            **more,
        }
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        part.replace(self._file)


def fingerprint(step: Step) -> str:
    """Of the commands and of the config files they name."""
    digest = hashlib.sha256(json.dumps(step.commands).encode())
    for word in (word for command in step.commands for word in command):
        path = pathlib.Path(word.removeprefix("--config="))
        if word.startswith("--config=") and path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Stopped(Exception):
    """A command ended otherwise than well; `code` as a shell would give it."""

    def __init__(self, command, code: int):
        super().__init__(f"{shlex.join(command)} ended with {code}")
        self.command, self.code = command, code


def run(command, log: pathlib.Path, on_line, on_tick, interrupts: list) -> float:
    """Runs a command to its end; returns the peak memory of its largest process, GB.

    Args:
      command: words.
      log: file that its output (both streams) is appended to.
      on_line: called, in a thread, with each line it prints; "\\r" ends a line too.
      on_tick: called ten times a second.
      interrupts: grows with each Ctrl-C; the first is passed on to the command, which
        saves what it has to, the second kills it.

    Raises:
      Stopped: it was interrupted or its exit code is not 0.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    with open(log, "ab", buffering=0) as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        process = subprocess.Popen(
            command,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it through us, once
        )
        reader = threading.Thread(
            target=_read, args=(process.stdout, file, on_line), daemon=True
        )
        reader.start()
        sent = ended = 0
        try:
            while not ended:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                on_tick()
                if not ended and len(interrupts) > sent:
                    signals = (signal.SIGINT, signal.SIGKILL)
                    os.killpg(process.pid, signals[min(sent, 1)])
                    sent += 1
                time.sleep(0 if ended else 0.1)
        finally:
            if not ended:
                os.killpg(process.pid, signal.SIGKILL)
        reader.join(timeout=5)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if interrupts or code:
        raise Stopped(command, 130 if interrupts else code)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _read(stream, file, on_line) -> None:
    pending = b""
    while chunk := os.read(stream.fileno(), 65536):
        file.write(chunk)
        *lines, pending = re.split(rb"[\r\n]", pending + chunk)
        for line in lines:
            if text := line.decode(errors="replace").strip():
                on_line(text)


class Runner:
    """Runs the steps in order and keeps the person in front of it informed.

    `file` is where their times are recorded; their logs stand in logs/ beside it.
    """

    def __init__(self, steps: list[Step], file: pathlib.Path, stream=None):
        self._steps = steps
        self._logs = file.parent / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self.record = Record(file, steps)
        self._clock = Clock(steps, self.record)
        self._screen = Screen(stream or sys.stdout)
        self._start = time.monotonic()
        self._interrupts: list[int] = []  # signals seen, see `run`

    def run(self) -> int:
        """All steps; returns the exit code."""
        old = {
            number: signal.signal(number, lambda n, _: self._interrupts.append(n))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            for step in self._steps:
                if code := self._run_step(step):
                    return code
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        return 0

    def seconds_left(self) -> float:
        """Of everything, before the first step."""
        return self._clock.left(self._steps[0], 0.0)[1]

    def say(self, text: str) -> None:
        self._screen.line(text)

    def _title(self, step: Step) -> str:
        return f"[{self._steps.index(step) + 1}/{len(self._steps)}] {step.name:<13}"

    def _run_step(self, step: Step) -> int:
        log = self._logs / f"{step.name.replace(' ', '_')}.log"
        begin, memory, done, stopped = time.monotonic(), 0.0, False, None
        latest = [""]

        def listen(line):
            latest[0] = line

        def tick():
            elapsed = time.monotonic() - begin
            self._clock.progress(elapsed, fraction(latest[0]))
            left, total = self._clock.left(step, elapsed)
            head = f"{self._title(step)} {span(elapsed)}, {span(left)} left"
            head += f" | all: {span(time.monotonic() - self._start)}"
            head += f", {span(total)} left"
            if self._interrupts:
                head = f"{self._title(step)} stopping; Ctrl-C again kills it"
            self._screen.status(head, latest[0])

        try:
            for command in step.commands:
                self._clock.start()
                latest[0] = ""
                peak = run(command, log, listen, tick, self._interrupts)
                memory = max(memory, peak)
            done = True
        except (Stopped, OSError) as error:
            stopped = error
        seconds = time.monotonic() - begin
        before = self.record.add(step, seconds, memory, done)
        if done:
            was = " (was done already)" if before else f", peak {memory:.1f} GB"
            self.say(f"{self._title(step)} {span(seconds)}{was}")
            return 0
        return self._explain(step, stopped, log)

    def _explain(self, step: Step, error: Exception, log: pathlib.Path) -> int:
        code = getattr(error, "code", 1)
        if self._interrupts:
            self.say(
                f"{self._title(step)} interrupted; the same command goes on from here"
            )
            return 130
        self.say(f"{self._title(step)} failed: {error}")
        if log.is_file():
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
            self.say("\n".join(f"    {line}" for line in tail))
        if code == -signal.SIGKILL:
            self.say("It was killed from outside: often, too little memory was left.")
        self.say(f"Log: {log}\nThe same command goes on from this step.")
        return code if code > 0 else 128 - code


def span(seconds: float) -> str:
    """ "4:07" or "1:02:30"."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
