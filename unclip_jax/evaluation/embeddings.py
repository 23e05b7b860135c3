"""Draws an embedding prior's embeddings for a whole data set, into files; scores them.

A folder of samples holds

    samples.npy   float32 (rows, *shape), or (rows, n, *shape)
    keys.npy      a text per row
    samples.json  how they were drawn; with scores.json, how good they are

While it is unfinished it holds unfinished.npy and unfinished.json, which says how many
rows are there; the same command goes on from them.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.data.aligned.reader import AlignedArrays
from unclip_jax.data.aligned.writer import TARGET
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.metrics.embedding_metrics import embedding_metrics
from unclip_jax.generation import Prior
from unclip_jax.generation.options import EmbeddingOptions
from unclip_jax.interop import native
from unclip_jax.models.conditions import MASK
from unclip_jax.progress import ProgressLine

SAMPLES, KEYS, ABOUT, SCORES = "samples.npy", "keys.npy", "samples.json", "scores.json"
UNFINISHED, SO_FAR = "unfinished.npy", "unfinished.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What is drawn, and for what.

    Attributes:
      prior: folder of the export.
      data: folder of aligned arrays.
      n: draws per row; 0: one, without an axis for it.
      seed: of all randomness.
      count: rows, the first of the data; 0: all.
      batch_size: embeddings that are drawn at a time.
      dtype: of the computation.
      options: of sampling.
    """

    prior: str
    data: str
    n: int = 0
    seed: int = 0
    count: int = 0
    batch_size: int = 256
    dtype: str = "float32"
    options: EmbeddingOptions = EmbeddingOptions()

    def __post_init__(self):
        for name, least in (("n", 0), ("count", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"--{name} must be at least {least}, got {getattr(self, name)}"
                )


def sample(config: SampleConfig, out, say=print) -> np.ndarray:
    """Draws embeddings into the folder `out`, or what is missing of them.

    Returns:
      the samples, memory-mapped.

    Raises:
      FileExistsError: `out` holds samples that were drawn otherwise, or other files.
      FileNotFoundError, UsageError: a prior or data that cannot be used.
    """
    data = AlignedArrays(config.data)
    prior = Prior.load(config.prior, config.dtype, config.batch_size)
    _check_data(prior, data)
    rows = min(config.count or len(data), len(data))
    plan = {
        "prior": native.read_index(config.prior)["parts"][prior.component.kind],
        "data": data.fingerprint,
        "rows": rows,
        **config_lib.to_plain(dataclasses.replace(config, prior="", data="")),
    }
    plan = json.loads(json.dumps(plan))
    folder = pathlib.Path(out)
    done = _rows_done(folder, plan)
    if (folder / SAMPLES).is_file():
        say(f"{folder}: finished already")
        return np.load(folder / SAMPLES, mmap_mode="r")
    draws = (config.n,) if config.n else ()
    shape = (rows, *draws, *prior.target_shape)
    file = folder / UNFINISHED
    if done:
        samples = np.lib.format.open_memmap(file, "r+")
    else:
        samples = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    progress = ProgressLine("embeddings", "rows")
    names = [n for n in data.arrays if n.removesuffix(MASK) in prior.conditions]
    size = max(1, config.batch_size // max(config.n, 1)) * 8
    for start in range(done, rows, size):
        progress(start, rows)
        part = slice(start, min(start + size, rows))
        samples[part] = prior.sample(
            {name: data.read(name)[part] for name in names},
            n=config.n or None,
            seed=config.seed,
            first=start,
            **vars(config.options),
        )
        samples.flush()
        files.write_json(folder / SO_FAR, {"plan": plan, "rows": part.stop})
    progress(rows, rows)
    del samples
    keys = data.keys[:rows]
    files.atomic_write(folder / KEYS, lambda f: np.save(f, keys))
    files.write_json(folder / ABOUT, {**plan, "encoder": prior.encoder})
    files.sync(file)
    file.rename(folder / SAMPLES)
    (folder / SO_FAR).unlink(missing_ok=True)
    say(f"{folder}: {rows:,} rows of embeddings {shape[1:]}")
    return np.load(folder / SAMPLES, mmap_mode="r")


def score(
    config: SampleConfig, out, train: str = "", groups: str = "", say=print
) -> dict[str, Any]:
    """Scores what `sample` drew; writes scores.json and prints a table.

    Args:
      config: as of `sample`.
      out: the folder of samples.
      train: folder of aligned arrays that the prior learnt from; "": unknown.
      groups: name of a class among the data's conditions (the prior need not know it),
        of each of which there are scores too; "": none.

    Returns:
      see embedding_metrics, and "chance@1", "chance@5"; with `groups` also "groups",
      {class: scores among its own rows}.

    Raises:
      UsageError: no such class, or one with a single row.
    """
    samples = np.load(pathlib.Path(out) / SAMPLES, mmap_mode="r")
    data, rows = AlignedArrays(config.data), len(samples)
    more: dict[str, Any] = {}
    if config.n > 1:
        more["redrawn"] = _flat(samples[:, 1])
    if train:
        more["train"] = _flat(AlignedArrays(train).read(TARGET))
    first = samples[:, 0] if config.n else samples
    predicted, true = _flat(first), _flat(data.read(TARGET)[:rows])
    classes = _classes(data, groups, rows) if groups else None
    scores = _score(predicted, true, **more)
    tables = {"": scores}
    if classes is not None:
        more = {name: x for name, x in more.items() if name == "redrawn"}
        for value in np.unique(classes[classes >= 0]):
            own = classes == value
            if own.sum() < 2:
                raise UsageError(f"{groups} {value} has a single row: nothing to rank")
            redrawn = {name: x[own] for name, x in more.items()}
            tables[str(value)] = _score(predicted[own], true[own], **redrawn)
        scores = {**scores, "groups": {k: t for k, t in tables.items() if k}}
    files.write_json(pathlib.Path(out) / SCORES, scores)
    for name, table in tables.items():
        if name:
            say(f"{groups} {name}: {np.count_nonzero(classes == int(name)):,} rows")
        width = max(map(len, table))
        for key, value in table.items():
            say(f"{key:{width}}  {value:.4f}")
    return scores


def _score(predicted, true, **more) -> dict[str, float]:
    chance = {f"chance@{k}": min(k / len(true), 1.0) for k in (1, 5)}
    return embedding_metrics(predicted, true, **more) | chance


def _classes(data: AlignedArrays, name: str, rows: int) -> np.ndarray:
    """(rows,) of a class; negative ones are not known."""
    conditions = data.manifest["conditions"]
    known = [n for n, about in conditions.items() if about["kind"] == "class"]
    if name not in known:
        raise UsageError(
            f"--groups={name}: {data.path} has no such class; it has "
            f"{', '.join(known) or 'none'}"
        )
    return np.asarray(data.read(name)[:rows])


def _flat(x):
    return np.asarray(x).reshape(len(x), -1)


def _check_data(prior: Prior, data: AlignedArrays) -> None:
    """Raises UsageError for data that the prior cannot have been trained for."""
    conditions = data.manifest["conditions"]
    if lacking := [name for name in prior.conditions if name not in conditions]:
        raise UsageError(
            f"{data.path} has no condition {lacking[0]!r}, which the prior in use was "
            f"trained with; it has {', '.join(conditions)}"
        )
    if data.arrays[TARGET][1] != prior.target_shape:
        raise UsageError(
            f"{data.path} has targets of shape {data.arrays[TARGET][1]}, the prior "
            f"makes {prior.target_shape}"
        )
    encoder = data.manifest["encoder"]
    hashed = encoder.startswith("sha256 ")  # nobody said which encoder: other examples
    if prior.encoder and not hashed and prior.encoder != encoder:
        raise UsageError(
            f"{data.path} has embeddings of {encoder!r}, the prior learnt those of "
            f"{prior.encoder!r}"
        )


def _rows_done(folder, plan) -> int:
    """How many rows an interrupted command has left; 0 in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / ABOUT).is_file():
        found = files.read_json(folder / ABOUT, "")
    elif (folder / SO_FAR).is_file():
        state = files.read_json(folder / SO_FAR, "")
        found = state.get("plan", {})
        if found == plan and (folder / UNFINISHED).is_file():
            return int(state["rows"])
    else:
        other = [path.name for path in folder.iterdir() if path.name != UNFINISHED]
        if other:
            raise FileExistsError(
                f"{str(folder)!r} is not empty and holds no samples, but {other[0]!r}; "
                "choose another --out"
            )
        return 0
    if different := [name for name in plan if found.get(name) != plan[name]]:
        name = different[0]
        raise FileExistsError(
            f"{str(folder)!r} holds samples drawn otherwise ({name} was "
            f"{found.get(name)!r}, now {plan[name]!r}); choose another --out or remove "
            "it"
        )
    return 0
