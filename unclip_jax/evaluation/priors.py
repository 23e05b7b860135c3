"""Compare the priors of an export on captions whose true embeddings are known.

The config's fields:

    model    folder of an export with a CLIP and at least one prior
    data     records of that CLIP (source="records", path=...)
    count    captions, drawn from the data by the seed
    seed     of the draw and of the priors
    batch_size
    priors   {row: options of UnCLIP.sample_embeddings}; "prior" names which one

In the work folder appears priors.json. Below the priors' rows stand what they are to be
read against: the true embedding itself and as the codes of the autoregressive prior,
and what needs no prior at all, the mean of the true embeddings, another caption's, and
the caption's own text embedding.
"""

import functools
import json
import pathlib

import jax
import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.evaluation import inputs
from unclip_jax.evaluation.metrics.prior_metrics import prior_metrics
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.options import PriorOptions, names
from unclip_jax.versions import versions

KEYS = ("model", "data", "count", "seed", "batch_size", "priors")


def compare_priors(config, workdir, *, model=None, log=print):
    """Draws embeddings with every prior of the config; returns {row: metrics}.

    Args:
      config: see the module.
      workdir: gets priors.json; made if needed.
      model: an UnCLIP to use instead of loading config.model.
      log: called with each line for the user.

    Raises:
      UsageError, FileNotFoundError: a config that cannot work, records of another CLIP,
        an export without a prior that is asked for.
    """
    check_config(config)
    source = inputs.open_records(config.data)
    if model is None:
        parts = ("clip", "prior", "ar_prior")
        model = UnCLIP.load(config.model, parts=parts, batch_size=config.batch_size)
    clip = inputs.check_clip(source, config.data.path, model, config.model)
    examples = inputs.draw_examples(source, config.count, config.seed)
    captions = [example["caption"] for example in examples]
    true = np.stack([example["clip_image"] for example in examples])
    text = np.stack([example["clip_text"] for example in examples])
    rows = {}
    for name, options in config_lib.to_plain(config.priors).items():
        log(f"{name}: drawing {len(captions)} embeddings")
        drawn = model.sample_embeddings(captions, seed=config.seed, **options)
        rows[name] = prior_metrics(drawn, true, text)
    for name, z in references(model, true, text).items():
        rows[name] = prior_metrics(z, true, text)
    results = {
        "format": "unclip_jax comparison of priors",
        "version": 1,
        "rows": rows,
        "n": int(config.count),
        "config": config_lib.to_plain(config),
        "data_fingerprint": source.fingerprint,
        "clip_fingerprint": clip,
        "versions": versions(),
    }
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    written = json.dumps(results, indent=1, allow_nan=False) + "\n"
    files.atomic_write(workdir / "priors.json", written)
    log(table(rows, config.count))
    log(f"written: {workdir}/priors.json")
    return rows


def check_config(config) -> None:
    """Raises UsageError for anything unknown or missing, with the nearest name."""
    config_lib.check_keys(config, KEYS, "config")
    if missing := [key for key in KEYS if key not in config]:
        raise UsageError(f"config lacks {', '.join(missing)}")
    if config.count < 2:
        raise UsageError(f"config.count must be at least 2, got {config.count}")
    if not config.priors:
        raise UsageError("config.priors is empty: name at least one row")
    for name, options in config.priors.items():
        config_lib.check_keys(options, names(PriorOptions), f"config.priors.{name}")


def references(model, true, text):
    """{row: (N, D)} of what priors are compared with; see the module."""
    rows = {"true embedding": true}
    if "ar_prior" in model.stack.parts:
        part = model.stack.part("ar_prior")
        apply = functools.partial(part.module.apply, {"params": part.params})
        codes = jax.jit(lambda *z: apply(*z, method="encode"))(true, text)[:, 1:]
        rows["its codes"] = np.asarray(apply(codes, method="decode"))
    rows["mean embedding"] = np.broadcast_to(true.mean(0), true.shape)
    rows["another caption's"] = np.roll(true, 1, axis=0)
    rows["text embedding"] = text
    return rows


def table(rows, count) -> str:
    """The rows as text."""
    names = list(next(iter(rows.values())))
    width = max(map(len, rows))
    sizes = [max(len(name), 8) for name in names]
    header = [name.rjust(size) for name, size in zip(names, sizes, strict=True)]
    lines = [f"{count} captions", "  ".join([" " * width, *header])]
    for row, values in rows.items():
        cells = [
            f"{value:.4g}".rjust(size)
            for value, size in zip(values.values(), sizes, strict=True)
        ]
        lines.append("  ".join([row.ljust(width), *cells]))
    return "\n".join(lines)
