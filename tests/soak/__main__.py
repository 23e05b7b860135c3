"""Kills runs at random moments, and tries what else may happen to them.

    python -m tests.soak --kills=200 --folder=/tmp/soak --report=docs/reliability.md

With --folder the same command goes on where it was: also after --seconds, which ends it
in time. With --report the table between the marks in that file is written anew.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import sys
import tempfile
import time

os.environ["JAX_PLATFORMS"] = "cpu"

from tests import soak  # noqa: E402
from tests.soak import faults  # noqa: E402

BEGIN, END = "<!-- kills: begin -->", "<!-- kills: end -->"


class Kills:
    """The kills in one folder, of this call and of earlier ones.

    Attributes:
      done: all kills so far.
      ended: runs that were left alone at last, and ended like the first.
    """

    def __init__(self, folder: pathlib.Path, seed: int):
        self._folder, self._seed = folder, seed
        self._log = folder / "kills.jsonl"
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        rows = [json.loads(line) for line in lines]
        self.done = [soak.Kill(**row) for row in rows if "moment" in row]
        self.ended = sum("ended" in row for row in rows)
        whole = self._run("whole")
        if whole.committed() < soak.STEPS:
            assert whole.start().finish() == 0, whole.printed()
        self.expected = whole.result()

    def _run(self, name):
        return soak.Run(self._folder / name, self._folder / "cache")

    def one_life(self, until: int, end: float) -> None:
        """Kills a run again and again, until it ends before its killer comes."""
        run = self._run("killed")
        while len(self.done) < until and time.monotonic() < end:
            rng = random.Random(f"{self._seed} {len(self.done)} {self.ended}")
            kill = kill_once(run, rng)
            if kill is None:
                break
            self.done.append(kill)
            self._note(dataclasses.asdict(kill))
        else:
            if len(self.done) < until:
                return  # goes on in another call
            assert run.start().finish() == 0, run.printed()
        wrong = soak.differences(self.expected, run.result())
        assert not wrong, f"not like a run that was left alone: {wrong}"
        self.ended += 1
        self._note({"ended": True})
        shutil.rmtree(run.folder)
        run.output.unlink()

    def _note(self, row):
        with self._log.open("a") as file:
            file.write(json.dumps(row) + "\n")


def kill_once(run: soak.Run, rng: random.Random) -> soak.Kill | None:
    """Starts a run, or goes on with it, and sends a signal; None if it ends before."""
    before = run.committed()
    run.start()
    moment = rng.choice(list(soak.MOMENTS))
    times = rng.randrange(1, 12) if moment == "t" else rng.choice((1, 1, 2, 3))
    number = rng.choice((signal.SIGKILL,) * 3 + (signal.SIGTERM,))
    if not run.wait_for(moment, times):
        assert run.finish() == 0, run.printed()
        return None
    time.sleep(rng.choice((0.0, rng.uniform(0, 0.01), rng.uniform(0, 0.2))))
    doing = run.last_moment()
    run.send(number)
    code = run.finish()
    if code == 0 and f"{number.name}: saved step" not in run.printed():
        return None
    _check_printed(run, number, code, before)
    return soak.Kill(doing, number.name, _logged(run), run.committed(), code)


def _check_printed(run, number, code, before):
    printed = run.printed()
    where = f"{number.name}, code {code}, from step {before}:\n{printed}"
    assert run.committed() >= before, f"a checkpoint was lost: {where}"
    assert "Traceback" not in printed, where
    assert code in (0, -number), where
    if "going on from" in printed:
        assert f"going on from step {before}\n" in printed, where
    if code == 0:
        assert f"saved step {run.committed()}" in printed, where


def _logged(run) -> int:
    path, last = run.folder / "metrics.jsonl", 0
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.endswith("}"):
            last = max(last, json.loads(line)["step"])
    return last


def table(kills: Kills) -> str:
    """Markdown: what the run was doing, how often it was killed, and what was lost."""
    groups = collections.defaultdict(list)
    for kill in kills.done:
        groups[kill.moment].append(kill)
    lines = [
        f"`python -m tests.soak --kills={len(kills.done)}` on {os.cpu_count()} "
        f"{platform.machine()} cores: {len(kills.done)} kills in {kills.ended} runs, "
        "each of which ended with the parameters, moving averages, optimizer state, "
        "losses, scores and previews of a run that was left alone, bit for bit, and "
        "with the same files.",
        "",
        "| while | SIGKILL | SIGTERM | steps to be made again, at most |",
        "|---|---|---|---|",
    ]
    for moment in soak.MOMENTS.values():
        several = groups[moment]
        counts = [
            sum(k.signal == name for k in several) for name in ("SIGKILL", "SIGTERM")
        ]
        lost = max((k.logged - max(k.saved, 0) for k in several), default=0)
        lines.append(f"| {moment} | {counts[0]} | {counts[1]} | {max(lost, 0)} |")
    return "\n".join(lines)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="all in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, help="keeps what was done")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument(
        "--stopped", type=float, default=60.0, help="seconds of SIGSTOP"
    )
    parser.add_argument("--fault", choices=faults.FAULTS, action="append")
    parser.add_argument("--report", type=pathlib.Path)
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    soak.preload()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        kills = Kills(folder, args.seed)
        names = args.fault or ([] if kills.done else list(faults.FAULTS))
        for name in names:
            place = pathlib.Path(tempfile.mkdtemp(dir=temporary))
            said = faults.FAULTS[name](place, folder / "cache", kills.expected, args)
            print(f"{name}: {said or 'as it should be'}", flush=True)
        while len(kills.done) < args.kills and time.monotonic() < end:
            kills.one_life(args.kills, end)
            print(f"{len(kills.done)} kills, {kills.ended} runs", flush=True)
        text = table(kills)
    print(text)
    if args.report is not None:
        head, _, rest = args.report.read_text().partition(BEGIN)
        tail = rest.partition(END)[2]
        args.report.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
