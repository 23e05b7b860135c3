"""Gaussians of embeddings: mean and covariance, float64, from streamed sums."""

import dataclasses
from collections.abc import Mapping

import numpy as np

BLOCK = 1024  # rows whose products are taken at once


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean (D,) and covariance (D, D, ddof 1) of embeddings, float64.

    `unit` says whether of those scaled to norm 1, which a decoder of unit embeddings
    sees.
    """

    mean: np.ndarray
    cov: np.ndarray
    unit: bool = False

    def project(self, z: np.ndarray, count: int) -> np.ndarray:
        """Projects embeddings (N, D) to their first `count` principal components."""
        if self.unit:
            z = z / np.linalg.norm(z, axis=-1, keepdims=True).clip(1e-12)
        _, vectors = np.linalg.eigh(self.cov)  # columns, by rising variance
        basis = vectors[:, vectors.shape[1] - count :]  # (D, count)
        kept = (z - self.mean) @ basis @ basis.T + self.mean
        return kept.astype(np.float32)


class GaussianSums:
    """Streaming float64 sums of embeddings, as they are and scaled to norm 1."""

    NAMES = ("count", "norm", "first", "second", "unit_first", "unit_second")

    def __init__(self, dim: int | None):
        """`dim` is the embeddings' width; None where there are none."""
        dim = dim or 0
        self.count, self.norm = 0.0, 0.0
        self.first, self.unit_first = np.zeros(dim), np.zeros(dim)
        self.second, self.unit_second = np.zeros((2, dim, dim))
        self._waiting: list[np.ndarray] = []

    def add(self, x: np.ndarray) -> None:
        """Adds one embedding (D,); products are taken for BLOCK of them at once."""
        self._waiting.append(np.asarray(x, np.float64))
        if len(self._waiting) == BLOCK:
            self._flush()

    def merge(self, other: "GaussianSums") -> None:
        """Adds what another one has seen."""
        other._flush()
        self._flush()
        for name in self.NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def state(self) -> dict[str, np.ndarray]:
        """Returns the sums as arrays; `from_state` reads them."""
        self._flush()
        return {name: np.asarray(getattr(self, name)) for name in self.NAMES}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> "GaussianSums":
        """The sums of `state`; an older version's has none of unit embeddings: NaN."""
        sums = cls(len(state["first"]))
        for name in cls.NAMES:
            default = np.full_like(getattr(sums, name), np.nan)
            setattr(sums, name, np.array(state.get(name, default)))
        return sums

    def statistics(self) -> dict[str, np.ndarray]:
        """Returns count, mean (D,), cov (D, D) of ddof 1, std (D,) its diagonal's root.

        mean_norm is that of the embeddings; unit_mean and unit_cov are of those scaled
        to norm 1, and are left out where they are not known.
        """
        self._flush()
        mean, cov = self._moments(self.first, self.second)
        statistics = {
            "count": np.asarray(int(self.count)),
            "mean": mean,
            "cov": cov,
            "std": np.sqrt(np.clip(np.diagonal(cov), 0, None)),
            "mean_norm": np.asarray(self.norm / self.count),
        }
        if np.isfinite(self.unit_first).all():
            unit_mean, unit_cov = self._moments(self.unit_first, self.unit_second)
            statistics |= {"unit_mean": unit_mean, "unit_cov": unit_cov}
        return statistics

    def _moments(self, first, second):
        """Mean (D,) and unbiased covariance (D, D) from sums."""
        mean = first / self.count
        cov = (second - self.count * np.outer(mean, mean)) / max(self.count - 1, 1)
        return mean, (cov + cov.T) / 2

    def _flush(self):
        if self._waiting:
            x = np.stack(self._waiting)
            self._waiting = []
            self.count += len(x)
            norms = np.linalg.norm(x, axis=1, keepdims=True)
            self.norm += norms.sum()
            self.first += x.sum(axis=0)
            self.second += x.T @ x
            unit = x / norms.clip(1e-12)
            self.unit_first += unit.sum(axis=0)
            self.unit_second += unit.T @ unit
