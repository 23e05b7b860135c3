"""Scores priors of a data set beside ridge regression and DALLE2-pytorch's prior.

    python -m benchmarks.embedding_prior --out=race.json \\
        --config=configs/any/text_to_image_embedding.py \\
        --test=runs/any_emoji/records/validation --peer=FOLDER

Each learns from the config's training split and predicts the test split: the mean of
--n draws, or the one prediction. Ridge regression is scikit-learn's RidgeCV on all
float conditions and one-hot classes. --peer is a folder with dalle2-pytorch 1.15.6 and
what it needs (pip install --target); it trains with the config's steps, batches,
learning rate, weight decay and EMA, on targets and conditions that are standardized as
ours are and joined to one vector, through a linear layer. Its size is --peer_ff, the
width of its feed-forward layers over the target's, in one layer of 4 heads.

Prints parameters, CPU seconds per step (user and system, all threads; the first steps
left out) and the scores; --fold=1/5 tests on a fifth of the training split instead, for
choosing a config: rows of one group of keys (what follows the first underscore) stay
together.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from unclip_jax import command_line, stages
from unclip_jax.data import loader
from unclip_jax.data.aligned.reader import AlignedArrays
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.metrics.embedding_metrics import embedding_metrics
from unclip_jax.generation import Prior
from unclip_jax.interop import native
from unclip_jax.parallel import sharding
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.train import defaults
from unclip_jax.training import optimizer, train_step
from unclip_jax.training import state as train_state
from unclip_jax.training.run_config import TrainConfig, read_config

FLAGS = {
    "test": (str, "folder of the aligned arrays that are predicted"),
    "fold": (str, "K/N: test on part K of N of the training split instead"),
    "n": (8, "draws per row, of which the mean is scored"),
    "peer": (str, "folder with dalle2-pytorch, which is trained too"),
    "peer_ff": (1.0, "width of the peer's feed-forward layers over the target's"),
    "ours": (True, "train the config's prior"),
    "out": ("", "a file for the numbers, as JSON"),
}
WARM_UP = 10  # steps that are not timed
SCORES = ("to_true", "predicted_to_true@1", "predicted_to_true@5")
SCORES += ("true_to_predicted@1", "two_way")


@dataclasses.dataclass(frozen=True)
class Split:
    """Arrays by name, and which of their rows are whose."""

    arrays: dict[str, np.ndarray]
    train: np.ndarray
    test: np.ndarray


def read_split(config: TrainConfig, test: str, fold: str) -> Split:
    """The rows of training and test, of one or of two folders.

    Raises UsageError unless exactly one of `test` and `fold` says which to test on.
    """
    if bool(test) == bool(fold):
        raise UsageError("give one of --test and --fold")
    data = AlignedArrays(config.data["path"])
    arrays = {name: np.asarray(data.read(name)) for name in data.arrays}
    rows = np.arange(len(data))
    if test:
        other = AlignedArrays(test)
        arrays = {k: np.concatenate([a, other.read(k)]) for k, a in arrays.items()}
        return Split(arrays, rows, len(data) + np.arange(len(other)))
    if not re.fullmatch(r"[1-9]\d*/[1-9]\d*", fold):
        raise UsageError(f"--fold={fold}: expected K/N, such as 1/5")
    part, count = map(int, fold.split("/"))
    groups = [str(key).partition("_")[2] or str(key) for key in data.keys]
    hashes = [hashlib.sha256(group.encode()).digest()[0] for group in groups]
    inside = np.array(hashes) % count == part - 1
    return Split(arrays, rows[~inside], rows[inside])


def features(split: Split, conditions) -> np.ndarray:
    """(n, F) all float conditions, and classes one-hot."""
    columns = []
    for name, condition in conditions.items():
        x = split.arrays[name]
        if condition.kind == "class":
            columns.append(np.eye(condition.size, dtype=np.float32)[x])
        else:
            columns.append(np.asarray(x, np.float32).reshape(len(x), -1))
    return np.concatenate(columns, axis=1)


def ridge(split: Split, conditions) -> np.ndarray:
    """Predictions (m, ...) of ridge regression, its strength chosen by itself."""
    from sklearn.linear_model import RidgeCV

    x, y = features(split, conditions), split.arrays["target"]
    model = RidgeCV(np.logspace(-1, 4, 11))
    model.fit(x[split.train], y[split.train].reshape(len(split.train), -1))
    return model.predict(x[split.test])


def draw_batches(config: TrainConfig, rows: np.ndarray) -> np.ndarray:
    """(steps, batch) rows: what each step learns from, of every arm the same."""
    rng = np.random.default_rng(config.seed)
    return rng.choice(rows, (config.steps, config.batch_size))


def ours(config: TrainConfig, stage, split: Split, n: int):
    """(predictions (m, ...), parameters, CPU seconds per step)."""
    tx = optimizer.make_optimizer(config.optimizer, config.steps)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    with jax.set_mesh(mesh):
        abstract = train_state.abstract_state(stage, tx, mesh, config.sharding_rules)
        state = train_state.init_sharded(stage, tx, config.seed, abstract)
        step = train_step.lower_step(stage, tx, mesh, config, abstract).compile()
        rng = jax.device_put(jax.random.key(config.seed), sharding.replicated(mesh))
        batch_sharding, start = sharding.batch_sharding(mesh), 0.0
        for i, rows in enumerate(draw_batches(config, split.train)):
            if i == WARM_UP:
                jax.block_until_ready(state)
                start = time.process_time()
            batch = {name: split.arrays[name][rows] for name in stage.batch_spec}
            state, _ = step(state, rng, jax.device_put(batch, batch_sharding))
        jax.block_until_ready(state)
    seconds = (time.process_time() - start) / (config.steps - WARM_UP)
    with tempfile.TemporaryDirectory() as folder:
        export = stage.export()
        params = jax.device_get(state.ema)
        native.write_part(folder, export["part"], export["config"], params, {})
        prior = Prior.load(folder)
        given = {name: a[split.test] for name, a in split.arrays.items()}
        del given["target"]
        many = {} if prior.is_deterministic else {"n": n}
        drawn = prior.sample(given, **many)
    if many:
        drawn = drawn.mean(1)
    return drawn, sum(a.size for a in jax.tree.leaves(params)), seconds


def peer(config: TrainConfig, split: Split, conditions, n: int, folder: str, ff):
    """The same of DALLE2-pytorch's prior, in a process of its own."""
    x, y = features(split, conditions), split.arrays["target"]
    spaces = {}
    for name, a in (("x", x), ("y", y)):
        rows = a[split.train]
        spaces[name] = rows.mean(0), rows.std(0) + 1e-6
    x, y = ((a - spaces[k][0]) / spaces[k][1] for k, a in (("x", x), ("y", y)))
    with tempfile.TemporaryDirectory() as place:
        file = pathlib.Path(place) / "job.npz"
        chosen = dataclasses.asdict(config.optimizer)
        job = {"n": n, "ff": ff, "ema_decay": config.ema_decay, "seed": config.seed}
        rates = optimizer.learning_rate(config.optimizer, config.steps)
        np.savez(
            file,
            x=x.astype(np.float32),
            y=y.astype(np.float32),
            test=split.test,
            batches=draw_batches(config, split.train),
            rates=np.array([float(rates(i)) for i in range(config.steps)]),
            job=json.dumps({**chosen, **job, "warm_up": WARM_UP}),
        )
        script = pathlib.Path(__file__).with_name("dalle2_worker.py")
        path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        subprocess.run(
            [sys.executable, str(script), str(file)],
            env={**os.environ, "PYTHONPATH": path},
            check=True,
        )
        with np.load(file.with_name("result.npz")) as found:
            drawn = found["drawn"] * spaces["y"][1] + spaces["y"][0]
            return drawn, int(found["parameters"]), float(found["seconds"])


def main(args):
    """Trains, predicts, scores and prints; writes args.out."""
    config = read_config(args.config)
    split = read_split(config, args.test or "", args.fold or "")
    data = loader.open_data({**config.data})
    stage = stages.make_stage(config, data.spec)
    conditions = stage.task.conditions
    arms = {"ridge regression": lambda: (ridge(split, conditions), None, None)}
    if args.ours:
        arms[config.stage] = lambda: ours(config, stage, split, args.n)
    if args.peer:
        options = conditions, args.n, args.peer, args.peer_ff
        arms["DALLE2-pytorch"] = lambda: peer(config, split, *options)
    true = split.arrays["target"][split.test].reshape(len(split.test), -1)
    results = {}
    for name, arm in arms.items():
        drawn, parameters, seconds = arm()
        scores = embedding_metrics(drawn.reshape(len(drawn), -1), true)
        results[name] = {"parameters": parameters, "cpu_seconds_per_step": seconds}
        results[name] |= {key: scores[key] for key in SCORES}
        shown = ", ".join(f"{key} {scores[key]:.4f}" for key in SCORES)
        size = (
            f"{parameters:,} parameters, {seconds:.4f} CPU s/step, " if seconds else ""
        )
        print(f"{name}: {size}{shown}", flush=True)
    print(f"chance@1 {1 / len(true):.4f}, {len(true):,} rows")
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main, defaults=defaults, workdir=False, extra_flags=FLAGS)
