"""Kernel Inception Distance (Binkowski et al. 2018), over any features.

The unbiased squared maximum mean discrepancy with the cubic polynomial kernel
(x.y / D + 1)^3, averaged over random subsets.  Unbiased: it can be a little below 0,
and does not depend on the number of images the way the Frechet distance does.
"""

import dataclasses

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features, same_width


def kid(generated, reference, subsets=100, subset_size=1000, seed=2020):
    """(mean, population std over subsets) for features (N, D), (M, D).

    Each subset is drawn without replacement by RandomState(seed).choice, first from
    `generated`, then from `reference` (torch-fidelity's order).

    Raises:
      UsageError: subset_size larger than either set.
    """
    x = as_features(generated, "generated features", minimum=2)
    y = as_features(reference, "reference features", minimum=2)
    same_width(x, y)
    smallest = min(x.shape[0], y.shape[0])
    if not 2 <= subset_size <= smallest:
        raise UsageError(
            f"kid subset_size = {subset_size} must lie between 2 and {smallest}, the "
            "smaller of the two sets; set subset_size lower or evaluate more images"
        )
    random = np.random.RandomState(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        a = x[random.choice(x.shape[0], subset_size, replace=False)]
        b = y[random.choice(y.shape[0], subset_size, replace=False)]
        values[i] = polynomial_mmd2(a, b)
    return float(values.mean()), float(values.std())


def polynomial_mmd2(x, y):
    """Unbiased squared MMD of x (N, D) and y (M, D) with kernel (x.y / D + 1)^3."""
    n, m, width = x.shape[0], y.shape[0], x.shape[1]
    kxx = (x @ x.T / width + 1.0) ** 3
    kyy = (y @ y.T / width + 1.0) ** 3
    kxy = (x @ y.T / width + 1.0) ** 3
    within_x = (kxx.sum() - np.trace(kxx)) / (n * (n - 1))
    within_y = (kyy.sum() - np.trace(kyy)) / (m * (m - 1))
    return within_x + within_y - 2.0 * kxy.mean()


@dataclasses.dataclass(frozen=True)
class KID(Metric):
    """The Kernel Inception Distance, of any features; see `kid`."""

    subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020
    features: str = "clip"

    quantities = {
        "mean": Quantity(
            "as FID, but unbiased: fair also for few pictures; around 0 is the "
            "same, and may be below",
            better="lower",
        ),
        "std": Quantity("its spread over random subsets", better=""),
    }

    @property
    def minimum(self):
        return self.subset_size

    def __call__(self, samples):
        x = samples.image_features(self.features)
        y = samples.reference_features(self.features)
        mean, std = kid(x, y, self.subsets, self.subset_size, self.seed)
        return {"mean": mean, "std": std}
