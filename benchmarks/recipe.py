"""Trains one decoder per line of docs/recipe.md at equal CPU minutes, and scores it.

    python -m benchmarks.recipe --minutes=4
    python -m benchmarks.recipe --minutes=1 --rows=paper --rows=muon --count=128

The lines are those of configs/icons/recipe.py: the paper's form, and one change of it
each. All learn from the same records, and the CLIP and prior of one export draw
held-out captions with them; `make demo` leaves both behind. How many steps a line has
follows from the CPU time that some of its steps take, here and now; compiling is not
counted.

Every line's numbers are kept in OUT/NAME/row.json, so that an interrupted table goes on
where it was; OUT/table.md is the table.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from configs.icons.recipe import ROWS
from unclip_jax import command_line
from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write

CONFIG = "configs/icons/recipe.py"
# the columns: heading, metric of evaluate, factor, digits
COLUMNS = (
    ("background %", "icons/background", 100, 1),
    ("color %", "icons/glyph_colour", 100, 1),
    ("glyph %", "icons/glyph_top1", 100, 1),
    ("CLIP score", "clip_score", 1, 3),
    ("R-precision %", "r_precision", 100, 1),
    ("Fréchet, CLIP", "frechet_clip", 1, 2),
    ("noise, gray levels", "border_noise", 1, 1),
)
FLAGS = {
    "minutes": (
        4.0,
        "CPU minutes of training per line, over the cores that it may use",
    ),
    "rows": ([], "only these lines; may be repeated"),
    "model": ("exports/icons", "an export with CLIP and prior"),
    "records": ("runs/icons/records/train", "of that CLIP"),
    "out": ("runs/recipe", "folder of the table and its runs"),
    "count": (224, "held-out captions to score, at least 100"),
    "seed": (0, "of training"),
}


def command(name: str, *flags: str) -> None:
    """Runs `python -m unclip_jax.NAME FLAGS`; raises UsageError if it fails."""
    words = [sys.executable, "-m", f"unclip_jax.{name}", *flags]
    code = subprocess.run(words).returncode
    if code:
        raise UsageError(f"{' '.join(words)} ended with {code}")


def seconds_per_step(name: str, records: str, steps: int = 8) -> float:
    """CPU seconds of a step of a line, divided by the cores that it may use."""
    # in a process of its own: what ran before must not count
    code = (
        "import sys, time\n"
        "from benchmarks import recipe\n"
        f"print(recipe.time_row({name!r}, {records!r}, {steps}))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"the step of {name!r} cannot be timed:\n{done.stderr[-600:]}")
    return float(done.stdout.split()[-1])


def time_row(name: str, records: str, steps: int) -> float:
    """As of `seconds_per_step`, in this process; the batch is random."""
    import jax

    from benchmarks.train import random_batch
    from unclip_jax import stages
    from unclip_jax.data import loader
    from unclip_jax.parallel import sharding
    from unclip_jax.parallel.mesh import make_mesh
    from unclip_jax.training import optimizer, state, train_step
    from unclip_jax.training.run_config import read_config

    loaded = config_lib.load(f"{CONFIG}:{name}")
    loaded.data.path = records
    config = read_config(loaded)
    spec = loader.open_data(config.data).spec
    stage = stages.make_stage(config, spec)
    tx = optimizer.make_optimizer(config.optimizer, config.steps)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        abstract = state.abstract_state(stage, tx, mesh, ())
        at = state.init_sharded(stage, tx, 0, abstract)
        step = train_step.lower_step(stage, tx, mesh, config, abstract).compile()
        batch = random_batch(stage, config.batch_size, spec.vocab_size)
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
        for i in range(steps + 2):
            if i == 2:
                start = time.process_time()
            at, metrics = step(at, key, batch)
            metrics["loss"].block_until_ready()
    cores = len(os.sched_getaffinity(0))
    return (time.process_time() - start) / steps / cores


def run_row(name: str, args) -> dict:
    """Trains, exports and scores a line; its numbers."""
    folder = pathlib.Path(args.out) / name
    record, fixed = folder / "row.json", folder / "steps.json"
    if record.is_file():
        return json.loads(record.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    if not fixed.is_file():  # a run that goes on must have as many steps
        seconds = seconds_per_step(name, args.records)
        steps = max(round(60 * args.minutes / seconds), 10)
        atomic_write(fixed, json.dumps({"seconds_per_step": seconds, "steps": steps}))
    row = json.loads(fixed.read_text())
    command(
        "train",
        f"--config={CONFIG}:{name}",
        f"--workdir={folder}/run",
        f"--config.data.path={args.records}",
        f"--config.steps={row['steps']}",
        f"--config.seed={args.seed}",
    )
    export = folder / "export"
    shutil.copytree(args.model, export, dirs_exist_ok=True)
    command("export", f"--run={folder}/run", f"--out={export}")
    command(
        "evaluate",
        "--config=configs/icons/eval.py",
        f"--workdir={folder}/eval",
        f"--config.model={export}",
        f"--config.count={args.count}",
    )
    results = json.loads((folder / "eval" / "results.json").read_text())
    row |= {"name": name, "minutes": args.minutes, "scores": results["scores"]}
    atomic_write(record, json.dumps(row, indent=1) + "\n")
    shutil.rmtree(export)  # the run has it all
    return row


def table(rows: list[dict]) -> str:
    """Markdown."""
    heads = ["line", "s per step", "steps", *(column[0] for column in COLUMNS)]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        cells = [f"{row['seconds_per_step']:.3f}", str(row["steps"])]
        for _, metric, factor, digits in COLUMNS:
            value = row["scores"].get(metric, {}).get("value")
            cells.append("" if value is None else f"{factor * value:.{digits}f}")
        lines.append([ROWS[row["name"]][0], *cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(args):
    """Runs the lines in order and writes the table after each."""
    unknown = [name for name in args.rows if name not in ROWS]
    if unknown:
        raise UsageError(f"--rows={unknown[0]}: expected one of {', '.join(ROWS)}")
    for folder in (args.model, args.records):
        if not pathlib.Path(folder).is_dir():
            raise UsageError(
                f"there is no {folder}: `make demo` makes an export and records; or "
                "give others with --model and --records"
            )
    rows = []
    for name in args.rows or ROWS:
        rows.append(run_row(name, args))
        text = table(rows)
        atomic_write(pathlib.Path(args.out) / "table.md", text)
        print(text, flush=True)


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS)
