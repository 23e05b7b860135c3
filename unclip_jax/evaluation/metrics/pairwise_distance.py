"""Diversity as the mean distance between the images of one set."""

import dataclasses

import numpy as np

from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features, unit_rows


def pairwise_distance(x):
    """Mean cosine distance 1 - cos over all pairs of different rows of x (N, D).

    0 when all images are the same.  Linear in N: the pairs' cosines sum to
    |sum of unit rows|^2.
    """
    x = unit_rows(as_features(x, minimum=2))
    n = x.shape[0]
    total = x.sum(axis=0)
    off_diagonal = total @ total - np.sum(x * x)
    return float(1.0 - off_diagonal / (n * (n - 1)))


@dataclasses.dataclass(frozen=True)
class PairwiseDistance(Metric):
    """Diversity of the images; see `pairwise_distance`."""

    features: str = "clip"

    quantities = {
        "": Quantity("variety: mean distance of two pictures, 0 if all are alike")
    }

    def __call__(self, samples):
        return {"": pairwise_distance(samples.image_features(self.features))}
