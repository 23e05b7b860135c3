"""Vendi score (Friedman and Dieng 2023): the effective number of distinct images.

exp of the Shannon entropy of the eigenvalues of K / N, K the cosine similarities: 1
when all images are the same, N when all are orthogonal.
"""

import dataclasses

import numpy as np

from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features, unit_rows


def vendi(x):
    """Vendi score of features x (N, D): a float between 1 and min(N, D)."""
    x = unit_rows(as_features(x))
    # The non-zero eigenvalues of x x^T and x^T x are the same: take the smaller.
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    values = np.linalg.eigvalsh(gram / x.shape[0])
    values = values[values > 0]
    values = values / values.sum()
    return float(np.exp(-np.sum(values * np.log(values))))


@dataclasses.dataclass(frozen=True)
class Vendi(Metric):
    """The Vendi score of the images; see `vendi`."""

    features: str = "clip"

    quantities = {
        "": Quantity(
            "how many different pictures there are in effect: 1 (all alike) to n"
        )
    }

    def __call__(self, samples):
        return {"": vendi(samples.image_features(self.features))}
