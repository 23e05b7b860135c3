"""Improved precision and recall (Kynkaanniemi et al. 2019).

Precision: the fraction of generated images that fall inside the real manifold;
recall: the fraction of real images inside the generated manifold.  A manifold is
the union of balls around its points that reach the k-th nearest other point.
"""

import dataclasses

import numpy as np

from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features, same_width
from unclip_jax.evaluation.metrics.distances import (
    blocks,
    centred,
    neighbour_radii,
    squared_distances,
)


def precision_recall(generated, reference, k=3):
    """(precision, recall) of features (N, D) against (M, D): two floats in [0, 1].

    A point on the surface of a ball is inside it (<=).
    """
    generated = as_features(generated, "generated features", minimum=k + 1)
    reference = as_features(reference, "reference features", minimum=k + 1)
    same_width(generated, reference)
    generated, reference = centred(generated, reference)
    precision = inside_manifold(generated, reference, k).mean()
    recall = inside_manifold(reference, generated, k).mean()
    return float(precision), float(recall)


def inside_manifold(points, manifold, k):
    """bool (N,): which points (N, D) lie in a ball of the manifold's points (M, D)."""
    radii = neighbour_radii(manifold, k)
    inside = np.empty(points.shape[0], dtype=bool)
    for rows in blocks(points.shape[0], manifold.shape[0]):
        d2 = squared_distances(points[rows], manifold)
        inside[rows] = (d2 <= radii[None, :]).any(axis=1)
    return inside


@dataclasses.dataclass(frozen=True)
class PrecisionRecall(Metric):
    """Precision and recall; see `precision_recall`."""

    k: int = 3
    features: str = "clip"

    quantities = {
        "precision": Quantity(
            "generated pictures that could be real: as near to a real one as real "
            "ones are to each other",
            percent=True,
        ),
        "recall": Quantity(
            "real pictures that the model could have drawn: low when it leaves "
            "kinds of pictures out",
            percent=True,
        ),
    }

    @property
    def minimum(self):
        return self.k + 1

    def __call__(self, samples):
        x = samples.image_features(self.features)
        y = samples.reference_features(self.features)
        return dict(zip(self.quantities, precision_recall(x, y, self.k), strict=True))
