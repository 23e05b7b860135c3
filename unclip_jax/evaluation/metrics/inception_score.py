"""Inception Score (Salimans et al. 2016): exp E KL(p(y|x) | p(y)), from logits."""

import dataclasses

import numpy as np

from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features


def inception_score(logits, splits=10, seed=2020):
    """(mean, population std over splits) from classifier logits (N, classes).

    Rows are shuffled by RandomState(seed).permutation first (torch-fidelity's way);
    split i is rows i*N//splits to (i+1)*N//splits.

    Raises:
      UsageError: fewer rows than splits.
    """
    logits = as_features(logits, "logits", minimum=splits)
    n = logits.shape[0]
    logits = logits[np.random.RandomState(seed).permutation(n)]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    scores = []
    for i in range(splits):
        rows = slice(i * n // splits, (i + 1) * n // splits)
        marginal = p[rows].mean(axis=0)
        # Where p underflows to 0 its term is 0; the marginal is then floored.
        log_marginal = np.log(np.maximum(marginal, np.finfo(np.float64).tiny))
        kl = np.sum(p[rows] * (log_p[rows] - log_marginal), axis=1)
        scores.append(np.exp(kl.mean()))
    return float(np.mean(scores)), float(np.std(scores))


@dataclasses.dataclass(frozen=True)
class InceptionScore(Metric):
    """The Inception Score; see `inception_score`."""

    splits: int = 10
    seed: int = 2020
    features: str = "inception/logits_unbiased"

    quantities = {
        "mean": Quantity(
            "pictures are of something definite, and of many things: 1 (all alike) "
            "to 1008; knows no caption and no real picture"
        ),
        "std": Quantity("its spread over splits", better=""),
    }

    @property
    def minimum(self):
        return self.splits

    def __call__(self, samples):
        logits = samples.image_features(self.features)
        mean, std = inception_score(logits, self.splits, self.seed)
        return {"mean": mean, "std": std}
