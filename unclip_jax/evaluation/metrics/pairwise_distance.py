"""Diversity as the mean distance between the images of one set."""

import collections
import dataclasses

import numpy as np

from unclip_jax.errors import UsageError
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


def grouped_distance(x, groups):
    """The mean of `pairwise_distance` over groups of two or more rows of x (N, D).

    Raises UsageError where no group has two.
    """
    members = collections.defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    pairs = [rows for rows in members.values() if len(rows) > 1]
    if not pairs:
        raise UsageError(
            "pairwise_distance within='caption' needs two images of a caption; all "
            f"{len(members)} captions are different: raise config.count"
        )
    return float(np.mean([pairwise_distance(x[rows]) for rows in pairs]))


@dataclasses.dataclass(frozen=True)
class PairwiseDistance(Metric):
    """Diversity of the images; see `pairwise_distance`.

    `within="caption"` compares images of one caption only, `grouped_distance`.
    """

    features: str = "clip"
    within: str = "set"

    quantities = {
        "": Quantity("variety: mean distance of two pictures, 0 if all are alike")
    }

    def __post_init__(self):
        if self.within not in ("set", "caption"):
            raise UsageError(f"within={self.within!r}: expected 'set' or 'caption'")

    def __call__(self, samples):
        x = samples.image_features(self.features)
        if self.within == "set":
            return {"": pairwise_distance(x)}
        return {"": grouped_distance(x, samples.caption_groups)}
