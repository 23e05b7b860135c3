"""Times what a user waits for at the start, with a model and from a warm cache.

    python -m benchmarks.start --model=exports/icons
    python -m benchmarks.start --model=exports/icons --repeats=5 --out=start.json

Everything runs in new processes, once to fill the cache of compiled programs
(docs/sampling.md) and then --repeats times:

  help            `python -m unclip_jax.sample --help`
  console         `python -m unclip_jax.sample`, until the file with one image is there
  import          Python: `from unclip_jax import UnCLIP`
  load            UnCLIP.load, then
  text2image      one image
  page            `python -m unclip_jax.app`, until a browser gets the page, then
  page, first     the first drawing of that page, of one image
  page, second    another of its drawings, of one image

Prints the median and the range of the seconds that passed, and of the CPU seconds that
the process took: these hardly depend on what else the machine does. The last three need
requirements-app.txt and are left out with --no-page.
"""

import collections
import itertools
import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from unclip_jax import command_line
from unclip_jax.errors import UsageError

FLAGS = {
    "model": (command_line.REQUIRED, "folder of an export"),
    "prompt": ("a red heart on a white background", "what is drawn"),
    "repeats": (3, "timed runs, after one that is not"),
    "page": (True, "time the web page, too"),
    "out": ("", "a file for the numbers, as JSON"),
}
PATIENCE = 300.0  # seconds until the page must be there

# CPU seconds and the clock, after each thing that a script does
SCRIPT = """
import json, sys, time
def lap(): laps.append((time.monotonic(), time.process_time()))
laps = []
lap()
from unclip_jax import UnCLIP
lap()
model = UnCLIP.load(sys.argv[1])
lap()
model.text2image([sys.argv[2]])[0].save(sys.argv[3])
lap()
print(json.dumps(laps))
"""

Seconds = tuple[float, float]  # that passed, and of the CPU


def module(name: str, *flags: str) -> list[str]:
    """A command of the package."""
    return [sys.executable, "-m", f"unclip_jax.{name}", *flags]


def time_command(command: list[str]) -> tuple[Seconds, str]:
    """What a command takes, and what it prints; UsageError if it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True)
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        raise UsageError(f"{' '.join(command[1:])} failed: {result.stderr[-500:]}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return (wall, cpu), result.stdout


def time_script(model: str, prompt: str, out: str) -> Iterator[tuple[str, Seconds]]:
    """What Python takes for each of a script's lines."""
    _, output = time_command([sys.executable, "-c", SCRIPT, model, prompt, out])
    laps = json.loads(output.splitlines()[-1])
    names = ("import", "load", "text2image")
    for name, (before, after) in zip(names, itertools.pairwise(laps), strict=True):
        yield name, (after[0] - before[0], after[1] - before[1])


def time_page(model: str, prompt: str) -> Iterator[tuple[str, Seconds]]:
    """What the page takes to be there, and for two drawings."""
    from gradio_client import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = module("app", f"--model={model}", f"--port={port}")
    url, start = f"http://127.0.0.1:{port}", time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > start + PATIENCE:
                    raise UsageError(f"{' '.join(command[1:])} does not show a page")
                time.sleep(0.02)
            yield "page", (time.monotonic() - start, _cpu_seconds(process.pid))
            client = Client(url, verbose=False)
            for name in ("page, first", "page, second"):
                cpu, start = _cpu_seconds(process.pid), time.monotonic()
                client.predict(prompt, 1, api_name="/draw")
                wall = time.monotonic() - start
                yield name, (wall, _cpu_seconds(process.pid) - cpu)
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return response.status == 200
    except urllib.error.URLError:
        return False


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (Linux)."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def time_all(args, folder: str) -> Iterator[tuple[str, Seconds]]:
    """Everything once."""
    out = f"{folder}/image.png"
    yield "help", time_command(module("sample", "--help"))[0]
    flags = f"--model={args.model}", f"--prompt={args.prompt}", f"--out={out}"
    yield "console", time_command(module("sample", *flags, "--overwrite"))[0]
    yield from time_script(args.model, args.prompt, out)
    if args.page:
        yield from time_page(args.model, args.prompt)


def main(args) -> None:
    """Prints a line for each thing that is timed; writes the seconds of all runs."""
    if args.repeats < 1:
        raise UsageError(f"--repeats must be at least 1, got {args.repeats}")
    runs: dict[str, list[Seconds]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(1 + args.repeats):
            for name, seconds in time_all(args, folder):
                if i:
                    runs[name].append(seconds)
    print(f"{'':14} {'seconds':>22} {'CPU seconds':>22}")
    for name, seconds in runs.items():
        columns = [
            f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})"
            for column in zip(*seconds, strict=True)
        ]
        print(f"{name:14} {columns[0]:>22} {columns[1]:>22}", flush=True)
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS)
