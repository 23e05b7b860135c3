"""What codes keep of a set of embeddings: the best the autoregressive prior can do."""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from unclip_jax.data.loader import open_data
from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write, read_json
from unclip_jax.models import codebook

CODES = "codes.json"
COMPONENTS, BUCKETS = 319, 1024  # the paper's
LEAST = 8  # examples; fewer say nothing


def report(folder: str | os.PathLike) -> str | None:
    """Writes codes.json into a finished folder of records, unless it is there.

    The codebook of half of a sample of the embeddings (up to 100,000, evenly spread)
    codes the other half, with the paper's sizes or, where the embeddings are narrower
    or few, with as many components and buckets as they allow. Errors are fractions of
    the variance around the mean:

        examples, dim, components, buckets
        pca_error          of the dropped components alone
        error              of components and buckets
        cosine             between embeddings and what their codes decode to
        components_for_1_percent   least components whose pca_error is below 0.01

    Returns:
      A line that says so; None where there are too few examples.
    """
    file = pathlib.Path(folder) / CODES
    if not file.is_file():
        data = open_data({"source": "records", "path": str(folder)})
        z = data.embedding_sample()["clip_image"].astype(np.float64)
        if len(z) < LEAST:
            return None
        atomic_write(file, json.dumps(measure(z), indent=1))
    found = read_json(file, "")
    try:
        return (
            f"{found['components']} of {found['dim']} principal components in "
            f"{found['buckets']} buckets lose {found['error']:.2%} of the embeddings' "
            f"variance ({found['pca_error']:.2%} without buckets), cosine "
            f"{found['cosine']:.4f}; {found['components_for_1_percent']} components "
            "lose less than 1%"
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file} is damaged ({error}): remove it") from error


def measure(z) -> dict[str, float]:
    """The numbers of `report` for embeddings (n, D)."""
    fitting, held_out = z[::2], z[1::2]
    n, dim = fitting.shape
    variances, _ = codebook.principal_components(np.cov(fitting.T).reshape(dim, dim))
    lost = 1 - np.cumsum(variances) / variances.sum()  # by components kept
    varying = int((variances > codebook.FLAT * variances[0]).sum())
    count, buckets = min(COMPONENTS, varying), min(BUCKETS, n)
    module = codebook.Codebook(dim, count, buckets)
    params = codebook.fit(fitting, np.zeros(n), count, buckets)  # no dot products here

    def through(method, *inputs) -> Any:
        return module.apply({"params": params}, *inputs, method=method)

    def decoded(z):
        codes = through("encode", z, np.zeros(len(z), np.float32))
        return through("decode", codes[:, 1:])

    back = np.asarray(jax.jit(decoded)(held_out.astype(np.float32)), np.float64)
    spread = np.square(held_out - fitting.mean(0)).sum(1).mean()
    kept = (held_out - fitting.mean(0)) @ params["components"].astype(np.float64)
    norms = np.linalg.norm(held_out, axis=1) * np.linalg.norm(back, axis=1)
    values = {
        "pca_error": 1 - np.square(kept).sum(1).mean() / spread,
        "error": np.square(held_out - back).sum(1).mean() / spread,
        "cosine": ((held_out * back).sum(1) / norms.clip(1e-12)).mean(),
    }
    return {
        "examples": len(z),
        "dim": dim,
        "components": count,
        "buckets": buckets,
        **{name: round(float(value), 5) + 0.0 for name, value in values.items()},
        "components_for_1_percent": int(np.argmax(lost < 0.01)) + 1,
    }
