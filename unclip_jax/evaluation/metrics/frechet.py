"""Frechet distance between two feature sets, each seen as one Gaussian.

    d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))

(Dowson and Landau 1982; "FID" when the features are InceptionV3's, Heusel et al.
2017.)  Everything is float64, covariances have ddof = 1.

The last trace is the sum of the singular values of F1^T F2, for any factors F F^T = S:
two factorisations and one SVD. It is never complex, exact for rank-deficient
covariances, without the rounding a matrix square root of the product suffers (there
eigenvalues are squares of these singular values).
"""

import dataclasses
import warnings

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features, same_width

FULL_RANK = 1e-10  # least Cholesky pivot, of the largest, that is surely no rounding
BLOCK = 4096  # rows
FEW = 10_000  # below this the distance is biased upwards by more than it is worth


def statistics(x, name="features"):
    """(mean (D,), covariance (D, D)) of features x (N, D), float64, in two passes.

    Only BLOCK rows at a time are float64: 30,000 x 2048 would be half a gigabyte.
    """
    x = as_features(x, name, minimum=2, dtype=None)
    starts = range(0, x.shape[0], BLOCK)
    parts = [x[i : i + BLOCK] for i in starts]  # views
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in parts) / x.shape[0]
    outer = np.zeros((x.shape[1], x.shape[1]))
    for part in parts:
        centred = part - mean
        outer += centred.T @ centred
    return mean, outer / (x.shape[0] - 1)


def frechet_distance(mean1, cov1, mean2, cov2):
    """Squared Frechet distance of two Gaussians: a float, never complex nor < 0.

    Args:
      mean1, mean2: (D,).
      cov1, cov2: (D, D) symmetric positive semi-definite, of any rank.

    Raises:
      UsageError: shapes that do not fit, NaN or infinity (says in which argument).
    """
    arrays = {"mean1": mean1, "cov1": cov1, "mean2": mean2, "cov2": cov2}
    arrays = {k: np.asarray(v, dtype=np.float64) for k, v in arrays.items()}
    width = arrays["mean1"].size
    for name, value in arrays.items():
        shape = (width,) if name.startswith("mean") else (width, width)
        if value.shape != shape:
            raise UsageError(f"{name} has shape {value.shape}, expected {shape}")
        if not np.isfinite(value).all():
            raise UsageError(
                f"{name} holds NaN or infinity: one image's features are broken"
            )
    mean1, cov1, mean2, cov2 = arrays.values()
    root1, root2 = _root_factor(cov1), _root_factor(cov2)
    product = root1.T @ root2  # (r1, r2), as small as the ranks allow
    cross = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    gap = mean1 - mean2
    distance = gap @ gap + np.trace(cov1) + np.trace(cov2) - 2.0 * cross
    return float(max(distance, 0.0))


def frechet_from_features(x, y):
    """Squared Frechet distance of features x (N, D) and y (M, D).

    With no more rows than columns the features themselves are the square roots of
    their covariances (up to a rotation): no D x D matrix is made at all.
    """
    x = as_features(x, "generated features", minimum=2)
    y = as_features(y, "reference features", minimum=2)
    same_width(x, y)
    if max(x.shape[0], y.shape[0]) > x.shape[1]:
        return frechet_distance(*statistics(x), *statistics(y))
    gap = x.mean(axis=0) - y.mean(axis=0)
    x = (x - x.mean(axis=0)) / np.sqrt(x.shape[0] - 1)
    y = (y - y.mean(axis=0)) / np.sqrt(y.shape[0] - 1)
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    distance = gap @ gap + np.sum(x * x) + np.sum(y * y) - 2.0 * cross
    return float(max(distance, 0.0))


def warn_few(n, width, name="generated"):
    """Warn, and return the warnings' texts, when n images are few for D features."""
    texts = []
    if n <= width:
        texts.append(
            f"{n} {name} images are fewer than {width + 1}: the covariance of "
            f"{width} features is rank-deficient; compare only equal counts"
        )
    elif n < FEW:
        texts.append(
            f"{n} {name} images are fewer than {FEW}: the Frechet distance is "
            "biased upwards; compare only equal counts"
        )
    for text in texts:
        warnings.warn(text, stacklevel=2)
    return texts


def _root_factor(cov):
    """F (D, r) with F F^T = cov, without the directions that are only rounding.

    Cholesky where the covariance has full rank beyond doubt (a twentieth of the time),
    else the eigenvectors, of which those of rounding are left out.
    """
    cov = (cov + cov.T) / 2
    try:
        factor = np.linalg.cholesky(cov)
        pivots = np.diag(factor) ** 2
        if pivots.min() > FULL_RANK * pivots.max():
            return factor
    except np.linalg.LinAlgError:  # a pivot is not positive
        pass
    values, vectors = np.linalg.eigh(cov)
    floor = max(values[-1], 0.0) * cov.shape[0] * np.finfo(np.float64).eps
    keep = values > floor
    return vectors[:, keep] * np.sqrt(values[keep])


@dataclasses.dataclass(frozen=True)
class Frechet(Metric):
    """The Frechet distance of any features to the reference."""

    features: str = "clip"

    statistics = True
    quantities = {
        "": Quantity(
            "how far the generated pictures as a set are from the real ones: FID's "
            "formula on other features, so no value to compare with an FID; 0 is "
            "the same mean and covariance",
            better="lower",
        )
    }

    def __call__(self, samples):
        """Through the reference's statistics, unless it has few images."""
        x = samples.image_features(self.features)
        warn_few(x.shape[0], x.shape[1])
        if samples.few_references(x.shape[1]):
            y = samples.reference_features(self.features)
            return {"": frechet_from_features(x, y)}
        reference = samples.reference_statistics(self.features)
        own = statistics(x, "generated features")
        return {"": frechet_distance(*own, reference.mean, reference.covariance)}
