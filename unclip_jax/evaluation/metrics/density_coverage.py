"""Density and coverage (Naeem et al. 2020): precision and recall, less brittle.

Density counts in how many real balls a generated image falls (so an outlier's huge
ball cannot lift it); coverage is the fraction of real images that have a generated
one within their own ball.
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


def density_coverage(generated, reference, k=5):
    """(density, coverage) of features (N, D) against (M, D): two floats.

    density = mean count / k, may exceed 1; both compare with strict <.
    """
    generated = as_features(generated, "generated features")
    reference = as_features(reference, "reference features", minimum=k + 1)
    same_width(generated, reference)
    generated, reference = centred(generated, reference)
    radii = neighbour_radii(reference, k)
    count = 0
    nearest = np.full(reference.shape[0], np.inf)
    for rows in blocks(generated.shape[0], reference.shape[0]):
        d2 = squared_distances(generated[rows], reference)
        count += int((d2 < radii[None, :]).sum())
        nearest = np.minimum(nearest, d2.min(axis=0))
    density = count / (k * generated.shape[0])
    return float(density), float((nearest < radii).mean())


@dataclasses.dataclass(frozen=True)
class DensityCoverage(Metric):
    """Density and coverage; see `density_coverage`."""

    k: int = 5
    features: str = "clip"

    quantities = {
        "density": Quantity(
            "as precision, but one odd real picture counts little; 1 is what real "
            "pictures get, more is possible"
        ),
        "coverage": Quantity(
            "as recall, but odd generated pictures do not help: real ones with a "
            "generated one nearby",
            percent=True,
        ),
    }

    def __call__(self, samples):
        x = samples.image_features(self.features)
        y = samples.reference_features(self.features)
        return dict(zip(self.quantities, density_coverage(x, y, self.k), strict=True))
