"""CMMD (Jayasumana et al. 2024): maximum mean discrepancy of CLIP embeddings.

Embeddings are L2-normalised, the kernel is Gaussian with sigma = 10, the estimate is
the biased V-statistic, times 1000.  On the unit sphere all kernel values lie within
2% of 1, so k - 1 is summed (`expm1`, float64): the 1s cancel exactly.
"""

import dataclasses

import numpy as np

from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features, same_width, unit_rows
from unclip_jax.evaluation.metrics.distances import blocks


def cmmd(generated, reference, sigma=10.0, scale=1000.0):
    """CMMD of CLIP features (N, D) and (M, D): a float, 0 for equal sets."""
    x = unit_rows(as_features(generated, "generated features"))
    y = unit_rows(as_features(reference, "reference features"))
    same_width(x, y)
    gamma = 1.0 / (2.0 * sigma**2)
    value = _kernel(x, x, gamma) + _kernel(y, y, gamma) - 2.0 * _kernel(x, y, gamma)
    return float(scale * value)


def _kernel(x, y, gamma):
    """Mean over all pairs of exp(-gamma |x - y|^2) - 1."""
    total = 0.0
    xx, yy = np.einsum("nd,nd->n", x, x), np.einsum("md,md->m", y, y)
    for rows in blocks(x.shape[0], y.shape[0]):
        d2 = xx[rows, None] + yy[None, :] - 2.0 * (x[rows] @ y.T)
        total += np.expm1(-gamma * np.maximum(d2, 0.0)).sum()
    return total / (x.shape[0] * y.shape[0])


@dataclasses.dataclass(frozen=True)
class CMMD(Metric):
    """CMMD to the reference; see `cmmd`."""

    features: str = "clip"

    quantities = {
        "": Quantity(
            "as KID, in CLIP's embeddings and with a kernel that sees the whole "
            "distribution, x 1000; 0 is the same",
            better="lower",
        )
    }

    def __call__(self, samples):
        x = samples.image_features(self.features)
        return {"": cmmd(x, samples.reference_features(self.features))}
