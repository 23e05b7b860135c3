"""How fast FID is beside pytorch-fid on the same PNG files, from start to number.

    python -m tests.evaluation.benchmark [--pictures=2000] [--size=64] [--rounds=1]
        [--folder=FOLDER]

Makes two folders of half the pictures each and random calibrated weights in a temporary
folder, or in one that is kept, then runs both programs as whole processes on both
folders, in turns; the order changes every round. Ours compiles in the first round, and
reads its compilation cache in later ones. Prints seconds, CPU seconds, the distance,
and ratios of ours to theirs; then the seconds of the Frechet distance alone, at 2048
dimensions. Needs requirements-programs.txt.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from tests.parity import fid_programs
from unclip_jax.evaluation.metrics import frechet

ROOT = pathlib.Path(__file__).parents[2]
DIMENSIONS = 2048


def write_pictures(folder, count, size, seed):
    """Smooth random pictures with a little noise, as PNG files."""
    folder.mkdir()

    def write(i):
        random = np.random.default_rng((seed, i))
        coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + random.normal(0, 10, (size, size, 3))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        image.save(folder / f"{i:05d}.png")

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))


@dataclasses.dataclass(frozen=True)
class Run:
    """One whole process.

    Attributes:
      seconds: on the clock.
      cpu: seconds of all cores together.
      fid: what it found.
    """

    seconds: float
    cpu: float
    fid: float


def timed(command, environment, read):
    """Runs a command; `read()` then finds its distance."""
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - clock
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu, read())


def run_theirs(folder):
    environment = {**os.environ, "PYTHONPATH": str(fid_programs.PROGRAMS)}
    command = [sys.executable, fid_programs.__file__, "whole", str(folder)]

    def read():
        with np.load(folder / "whole.npz") as file:
            return float(file["fid"])

    return timed(command, environment, read)


def run_ours(folder):
    workdir = pathlib.Path(tempfile.mkdtemp(dir=folder))  # finds no features there
    command = (
        '. launch/env.sh && exec "$0" -m unclip_jax.evaluate --config=configs/fid.py '
        '--workdir="$2" --images="$1/a" --config.reference.images="$1/b" '
        '--config.extractors.inception.weights="$1/weights.pth"'
    )
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    arguments = ["sh", "-c", command, sys.executable, str(folder), str(workdir)]

    def read():
        results = json.loads((workdir / "results.json").read_text())
        return results["scores"]["fid"]["value"]

    return timed(arguments, environment, read)


def frechet_seconds():
    """(seconds, CPU seconds) of the distance of two covariances of full rank."""
    random = np.random.default_rng(0)
    scale = np.arange(1, DIMENSIONS + 1) ** -0.7
    sets = [random.normal(size=(3000, DIMENSIONS)) * scale for _ in range(2)]
    found = [frechet.statistics(x) for x in sets]
    clock, cpu = time.perf_counter(), time.process_time()
    frechet.frechet_distance(*found[0], *found[1])
    return time.perf_counter() - clock, time.process_time() - cpu


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000, help="in both folders")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", default="", help="goes on with what is there")
    args = parser.parse_args(argv)
    if not fid_programs.available():
        raise FileNotFoundError(
            f"no pytorch-fid in {fid_programs.PROGRAMS}: see requirements-programs.txt"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(args.folder or name)
        folder.mkdir(exist_ok=True, parents=True)
        make(folder, args.pictures // 2, args.size)
        print(f"{args.pictures} PNG files of {args.size} x {args.size}", flush=True)
        for number in range(args.rounds):
            duel(folder, number)
    seconds, cpu = frechet_seconds()
    print(f"Frechet distance at {DIMENSIONS}: {seconds:.2f} s, {cpu:.2f} s CPU")


def make(folder, count, size):
    """Weights and both sets of `count` pictures, unless they are there."""
    if not (folder / "weights.pth").exists():
        fid_programs.reference("weights", folder)
    for seed, part in enumerate("ab"):
        if not (folder / part).exists():
            write_pictures(folder / part, count, size, seed)


def duel(folder, number):
    """One run of each on both folders, and their ratio."""
    runs = {"pytorch-fid": run_theirs, "unclip_jax": run_ours}
    found = {}
    for name in list(runs)[:: -1 if number % 2 == 0 else 1]:
        found[name] = run = runs[name](folder)
        print(
            f"{name:<12} {run.seconds:7.1f} s {run.cpu:7.1f} s CPU  FID {run.fid:.6f}",
            flush=True,
        )
    theirs, ours = found["pytorch-fid"], found["unclip_jax"]
    print(
        f"ours / theirs: time {ours.seconds / theirs.seconds:.2f}, CPU "
        f"{ours.cpu / theirs.cpu:.2f}; FID differs by "
        f"{abs(ours.fid / theirs.fid - 1):.1e} of itself",
        flush=True,
    )


if __name__ == "__main__":
    main()
