"""Trains all stages on icons, draws pictures from sentences and measures them.

    make demo                      # installs first; the same command goes on
    python launch/demo.py --dry-run

Each step is a few commands of the package, which say themselves how far they are. A
finished step finds its work done and ends at once, an interrupted one goes on from its
last checkpoint. Standard library only: it runs before anything is installed.
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

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUNS, EXPORT = "runs/icons", "exports/icons"
RECORD = f"{RUNS}/demo.json"
PROMPTS = (
    "a red heart on a white background",
    "a yellow star on a blue background",
    "a black cat on an orange background",
    "a white airplane on a blue background",
    "a green fish on a yellow background",
    "a purple umbrella on a white background",
    "an orange key on a black background",
    "a blue house on a green background",
)
HEADLINES = (
    ("icons/background", "the background is the named colour"),
    ("icons/glyph_colour", "the glyph is the named colour"),
    ("icons/glyph_top1", "the glyph is the named one, of all glyphs"),
)


@dataclasses.dataclass(frozen=True)
class Step:
    """Commands under one name, and how long they take on two cores."""

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


def steps(python: str, install: str = "") -> list[Step]:
    """The demo. `install` is the command that makes `python`'s environment, if any."""

    def module(name, *options):
        return (python, "-m", f"unclip_jax.{name}", *options)

    def train(stage):
        config = f"--config=configs/icons/{stage}.py"
        return (module("train", config, f"--workdir={RUNS}/{stage}"),)

    records = ("--config=configs/icons/embed.py", f"--workdir={RUNS}/records")
    evaluation = ("--config=configs/icons/eval.py", f"--workdir={RUNS}/eval")
    exports = [
        module("export", f"--run={RUNS}/{part}", f"--out={EXPORT}")
        for part in ("clip", "prior", "decoder")
    ]
    sample = module(
        "sample",
        f"--model={EXPORT}",
        "--mode=text2image",
        *(f"--prompt={prompt}" for prompt in PROMPTS),
        "--samples=4",
        f"--out={RUNS}/samples.png",
        "--overwrite",
    )
    first = [Step("install", (tuple(shlex.split(install)),), 2.0)]
    return [
        *(first if install else []),
        Step("train clip", train("clip"), 3.7),
        Step("embed", (module("embed", *records),), 0.4),
        Step("train prior", train("prior"), 2.3),
        Step("train decoder", train("decoder"), 7.5),
        Step("export", tuple(exports), 0.2),
        Step("sample", (sample,), 0.2),
        Step("evaluate", (module("evaluate", *evaluation),), 0.6),
    ]


class Record:
    """A json file: what each step took, over all runs of the list."""

    def __init__(self, file: pathlib.Path, steps: list[Step]):
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


def run(steps: list[Step], record: Record) -> int:
    """Runs all steps in order, until one fails; returns the exit code."""
    interrupts = Interrupts()
    for number, step in enumerate(steps, start=1):
        title = f"[{number}/{len(steps)}] {step.name}"
        done_before = record.steps[step.name]["done"]
        expected = f"about {step.minutes:g} minutes on two cores"
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


def finish(record: Record, python: str) -> int:
    """Says what came out, from the evaluation's json; returns the exit code."""
    file = pathlib.Path(RUNS) / "eval" / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        count = results["provenance"]["n"]
        numbers = {name: results["scores"][name]["value"] for name, _ in HEADLINES}
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {file} does not hold what the evaluation writes: {error!r}")
        return 1
    record.write(results={"n": count, **numbers})
    total = record.totals()
    lines = [f"\n{count} captions of combinations never seen in training:"]
    lines += [f"  {100 * numbers[name]:5.1f}%  {text}" for name, text in HEADLINES]
    lines += [
        f"Time {span(total['seconds'])}, peak memory {total['peak_memory_gb']:.1f} GB "
        f"({RECORD}).",
        "Look at:",
        f"  {RUNS}/samples.png        pictures drawn from sentences",
        f"  {RUNS}/eval/samples.png   held-out captions, beside the true pictures",
        f"  {RUNS}/eval/report.html   all numbers, with the pictures",
        "Draw your own:",
        f"  {python} -m unclip_jax.sample --model={EXPORT} --out=mine.png \\",
        '    --prompt="a green moon on a black background"',
    ]
    print("\n".join(lines))
    return 0


def main(argv=None) -> int:
    """Runs the demo, or what is left of it; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=".venv/bin/python", help="runs the steps")
    parser.add_argument("--install", default="", help="a first step: this command")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would run"
    )
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    table = steps(args.python, args.install)
    if args.dry_run:
        for step in table:
            for command in step.commands:
                print(shlex.join(command))
        return 0
    record = Record(pathlib.Path(RECORD), table)
    minutes = sum(s.minutes for s in table if not record.steps[s.name]["done"])
    print(f"About {minutes:.0f} minutes on two cores.", end=" ")
    print("Ctrl-C stops; the same command goes on.\n", flush=True)
    return run(table, record) or finish(record, args.python)


if __name__ == "__main__":
    sys.exit(main())
