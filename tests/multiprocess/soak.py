"""Kills a run again and again at random moments, and checks that nothing is lost.

    python tests/multiprocess/soak.py --seed=0 --kills=20 --report=docs/reliability.md

Half of the kills hit a run of one process with 8 devices, half one of two processes
with 4 each; SIGKILL or SIGTERM, at a random moment of starting, compiling, training or
saving. After each the run must go on from the newest committed checkpoint, and in the
end have the parameters, moving averages and optimizer state of a run that nothing
disturbed, bit for bit. With --report the table between the marks in that file is
written anew; without, it is printed.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
TOY = ROOT / "tests" / "training" / "toy.py"
STEPS, PAUSE = 160, 0.05  # toy.py saves every 4 steps
LOG_EVERY = 2  # its rows of metrics
BOUND = 60  # seconds within which the others of a killed process must have ended
# as the loop says it, and as jax does when it ends a process: of process 0, of others
LOST = "another process of the run was lost", "another task died"
LOST += ("The tasks have crashed",)
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"


@dataclasses.dataclass
class Kill:
    """What one signal did.

    Attributes:
      run: "1 x 8" or "2 x 4".
      name: of the signal.
      moment: what the run was doing.
      victim: number of the process.
      reached: last step that was logged; saved: newest committed step afterwards.
      ended: seconds until every process had ended.
      codes: exit codes.
    """

    run: str
    name: str
    moment: str
    victim: int
    reached: int
    saved: int
    ended: float
    codes: tuple[int, ...]


class Run:
    """A toy run of some processes on this machine."""

    def __init__(self, workdir: pathlib.Path, processes: int):
        self.workdir, self.processes = workdir, processes
        self.name = f"{processes} x {8 // processes}"

    def start(self, pause=PAUSE):
        devices = 8 // self.processes
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
        environment["JAX_PLATFORMS"] = "cpu"
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = [sys.executable, str(TOY), str(self.workdir), "4", str(STEPS)]
        command.append(str(pause))
        if self.processes > 1:
            command += [f"localhost:{_free_port()}", str(self.processes)]
        self.output = [[] for _ in range(self.processes)]
        self.running = []
        for i in range(self.processes):
            process = subprocess.Popen(
                command + [str(i)] * (self.processes > 1),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.running.append(process)
            reader = threading.Thread(target=self._listen, args=(i,), daemon=True)
            reader.start()

    def said(self, i=0) -> str:
        return "".join(self.output[i])

    def finish(self, seconds: float = 900) -> tuple[tuple[int, ...], float]:
        """Exit codes, and seconds until all had ended; raises if it takes too long.

        Ticks are counted: where this program is stopped, so are those it waits for.
        """
        try:
            for tick in range(round(seconds / 0.1)):
                codes = tuple(p.poll() for p in self.running)
                if None not in codes:
                    return codes, tick * 0.1
                time.sleep(0.1)
        finally:
            for process in self.running:
                process.kill()
        raise AssertionError(f"still there after {seconds} s:\n{self.said()[-3000:]}")

    def committed(self) -> int:
        """The newest step whose checkpoint is whole; -1 for none."""
        folder = self.workdir / "checkpoints"
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=-1)

    def logged(self) -> int:
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        steps = [0]
        for line in lines:
            try:
                steps.append(json.loads(line)["step"])
            except ValueError:  # being written
                pass
        return max(steps)

    def _listen(self, i):
        self.output[i].extend(iter(self.running[i].stdout.readline, ""))


def kill_once(run: Run, rng: random.Random) -> Kill:
    """Starts the run, or goes on with it, and sends one signal."""
    before, was_logged = run.committed(), run.logged()
    run.start()
    number = rng.choice((signal.SIGKILL, signal.SIGTERM))
    early = rng.random() < 0.25
    if early:  # somewhere between importing and the first steps
        time.sleep(rng.uniform(1.0, 8.0))
    else:
        end = time.monotonic() + 120
        while run.logged() <= max(was_logged, before) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 1.5))
    victim = rng.randrange(run.processes)
    out = run.said()
    moment = "training" if "compiled in" in out else "starting"
    if "compiling" in out and "compiled in" not in out:
        moment = "compiling"
    if any(".orbax-checkpoint-tmp" in p.name for p in _there(run.workdir)):
        moment = "saving"
    run.running[victim].send_signal(number)
    codes, ended = run.finish(BOUND)
    found = Kill(
        run.name,
        signal.Signals(number).name,
        moment,
        victim,
        run.logged(),
        run.committed(),
        ended,
        codes,
    )
    _check(run, found, before)
    return found


def _check(run: Run, kill: Kill, before: int):
    outputs = "\n".join(run.said(i) for i in range(run.processes))
    where = f"{kill}\n{outputs[-3000:]}"
    assert kill.saved >= before, f"a checkpoint was lost: {where}"
    if before >= 0 and "going on from" in outputs:
        wanted = f"going on from step {before}"
        assert wanted in outputs or before == 0, f"it started elsewhere: {where}"
    noted = "SIGTERM: saved step" in outputs
    if kill.name == "SIGTERM" and noted:
        assert set(kill.codes) == {0}, f"not all ended well: {where}"
        assert kill.saved >= kill.reached, f"the step reached was not saved: {where}"
    elif kill.name == "SIGKILL" and run.processes > 1 and kill.moment != "starting":
        (other,) = (i for i in range(run.processes) if i != kill.victim)
        assert kill.codes[other] != 0, where
        assert any(text in run.said(other) for text in LOST), f"not named: {where}"


def soak(seed: int, kills: int, folder: pathlib.Path) -> list[Kill]:
    """All of it; raises AssertionError at the first thing that is not as it should."""
    rng = random.Random(seed)
    found = []
    for processes, count in ((1, kills // 2), (2, kills - kills // 2)):
        whole = Run(folder / f"whole-{processes}", processes)
        whole.start(pause=0)
        assert set(whole.finish()[0]) == {0}, whole.said()
        run = Run(folder / f"killed-{processes}", processes)
        for _ in range(count):
            kill = kill_once(run, rng)
            print(kill, flush=True)
            assert kill.saved < STEPS, "the run ended before the last kill: more STEPS"
            found.append(kill)
        run.start(pause=0)
        assert set(run.finish()[0]) == {0}, run.said()
        # a row of metrics averages LOG_EVERY steps; the first after a resume may have
        # fewer to average
        short = {k.saved + 1 for k in found[-count:] if k.saved % LOG_EVERY}
        _compare(whole.workdir, run.workdir, short)
    return found


def _compare(a: pathlib.Path, b: pathlib.Path, short: set[int]):
    """The checksums of everything saved, and the losses logged but at `short` steps."""
    metas = []
    for workdir in (a, b):
        path = workdir / "checkpoints" / str(STEPS) / "meta" / "metadata"
        sums = json.loads(path.read_text())["checksums"]
        metas.append({name: sums[name] for name in ("state", "ema")})
    assert metas[0] == metas[1], "the parameters are not those of an unbroken run"
    losses = []
    for workdir in (a, b):
        rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        pairs = [(row["step"], row["loss"]) for row in rows]
        losses.append([pair for pair in pairs if pair[0] not in short])
    assert losses[0] == losses[1], "the losses are not those of an unbroken run"


def table(kills: list[Kill], seed: int) -> str:
    """Markdown: each kill, and what is the same for all of them."""
    lines = [
        f"`python tests/multiprocess/soak.py --seed={seed} --kills={len(kills)}` on "
        f"{os.cpu_count()} {platform.machine()} cores: {len(kills)} of {len(kills)} "
        "survived; both runs ended with the parameters, moving averages, optimizer "
        "state and losses of an unbroken run, bit for bit (rows of metrics that "
        "average fewer steps, after a resume between two rows, apart).",
        "",
        "| processes x devices | signal | to process | while | logged | saved | lost "
        "steps | all ended after | exit codes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for k in kills:
        lost = max(0, k.reached - max(k.saved, 0))
        codes = ", ".join(map(str, k.codes))
        saved = "none yet" if k.saved < 0 else k.saved
        lines.append(
            f"| {k.run} | {k.name} | {k.victim} | {k.moment} | {k.reached} | {saved} "
            f"| {lost} | {k.ended:.1f} s | {codes} |"
        )
    return "\n".join(lines)


def _there(workdir) -> list[pathlib.Path]:
    folder = workdir / "checkpoints"
    return list(folder.iterdir()) if folder.is_dir() else []


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--report", type=pathlib.Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills = soak(asked.seed, asked.kills, pathlib.Path(folder))
    text = table(kills, asked.seed)
    if asked.report is None:
        print(text)
        return
    head, _, rest = asked.report.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    asked.report.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


if __name__ == "__main__":
    main()
