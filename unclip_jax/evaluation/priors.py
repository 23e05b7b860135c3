"""Compare the priors of an export on captions whose true embeddings are known.

In the work folder appears priors.json. Below the priors' rows stand what they are to be
read against: the true embedding itself and as the codes of the autoregressive prior,
and what needs no prior at all, the mean of the true embeddings, another caption's, and
the caption's own text embedding.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.evaluation import records
from unclip_jax.evaluation.metrics.prior_metrics import prior_metrics
from unclip_jax.generation.options import PriorOptions, names


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorsConfig(records.RecordsConfig):
    """The config: an export with at least one prior, and records."""

    batch_size: int = 128
    priors: dict[str, Any]  # row -> options of UnCLIP.sample_embeddings

    def __post_init__(self):
        if self.count < 2:
            raise UsageError(f"config.count must be at least 2, got {self.count}")
        if not self.priors:
            raise UsageError("config.priors is empty: name at least one row")
        for name, options in self.priors.items():
            where = f"config.priors.{name}"
            config_lib.check_keys(options, names(PriorOptions), where)


def compare_priors(config, workdir, *, model=None, log=print):
    """Draws embeddings with every prior of the config; returns {row: metrics}.

    Args:
      config: see PriorsConfig.
      workdir: gets priors.json; made if needed.
      model: an UnCLIP to use instead of loading config.model.
      log: called with each line for the user.

    Raises:
      UsageError, FileNotFoundError: a config that cannot work, and what
        records.read_examples raises.
    """
    config = config_lib.build(PriorsConfig, config, "config")
    parts = ("clip", "prior", "ar_prior")
    model, examples, about = records.read_examples(
        config, parts, config.batch_size, model
    )
    captions = [example["caption"] for example in examples]
    true = np.stack([example["clip_image"] for example in examples])
    text = np.stack([example["clip_text"] for example in examples])
    rows = {}
    for name, options in config.priors.items():
        log(f"{name}: drawing {len(captions)} embeddings")
        drawn = model.sample_embeddings(
            captions, seed=config.seed, progress=False, **options
        )
        rows[name] = prior_metrics(drawn, true, text)
    for name, z in references(model, true, text).items():
        rows[name] = prior_metrics(z, true, text)
    log(table(rows, config.count))
    results = {"format": "unclip_jax comparison of priors", "version": 1, "rows": rows}
    path = pathlib.Path(workdir) / "priors.json"
    records.write_results(path, results | about, log)
    return rows


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
