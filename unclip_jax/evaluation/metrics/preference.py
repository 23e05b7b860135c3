"""How often people prefer model A to B, from pairwise answers (unCLIP, section 5).

The answers of P comparisons are `counts`, int (P, 3): how many raters said "A", "not
sure" and "B" of each. A comparison is one observation however many raters saw it.
"""

import dataclasses

import numpy as np

from unclip_jax.errors import UsageError

Z_95 = 1.959963984540054  # the normal distribution's 97.5% quantile


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over comparisons; its 95% normal interval is value ± half_width."""

    value: float
    half_width: float
    n: int  # comparisons


def preference(counts: np.ndarray) -> Estimate:
    """The probability that A beats B; "not sure" counts as half a win for each.

    The paper reports "the probability that unCLIP beats GLIDE" of n = 1000 answers and
    does not say what became of "not sure". Halves use every answer and give A and B
    together 100%. The variance is that of the scores 1, 1/2 and 0, which without any
    "not sure" is the binomial p (1 - p) / n.

    Raises:
      UsageError: counts of another shape, or a comparison without an answer.
    """
    counts = _check(counts)
    return _mean((counts[:, 0] + counts[:, 1] / 2) / counts.sum(1))


def decided_preference(counts: np.ndarray) -> Estimate | None:
    """As `preference`, of the answers that are not "not sure"; None without any."""
    counts = _check(counts)
    decided = counts[:, 0] + counts[:, 2]
    some = decided > 0
    return _mean(counts[some, 0] / decided[some]) if some.any() else None


def agreement(counts: np.ndarray) -> dict[str, float] | None:
    """How far raters of the same comparison agree; None if none had two raters.

    Args:
      counts: int (P, C), with any number C of possible answers.

    Returns:
      observed: the probability that two raters of a comparison give the same answer,
        over all comparisons in proportion to their raters.
      alpha: Krippendorff's alpha for nominal data: 1 is full agreement, 0 that of
        answers dealt out at random. NaN when all answers are the same.
      n: comparisons with two raters or more.
    """
    counts = _check(counts)
    raters = counts.sum(1)
    counts, raters = counts[raters > 1], raters[raters > 1]
    if not len(counts):
        return None
    same = (counts * (counts - 1)).sum(1) / (raters - 1)
    observed = same.sum() / raters.sum()
    total, everyone = counts.sum(0), counts.sum()
    expected = (total * (total - 1)).sum() / (everyone * (everyone - 1))
    alpha = (observed - expected) / (1 - expected) if expected < 1 else float("nan")
    return {"observed": float(observed), "alpha": float(alpha), "n": len(counts)}


def _mean(scores):
    half_width = Z_95 * scores.std() / np.sqrt(scores.size)
    return Estimate(float(scores.mean()), float(half_width), scores.size)


def _check(counts):
    counts = np.asarray(counts)
    if counts.ndim != 2 or not len(counts):
        raise UsageError(f"counts must be (comparisons, answers), got {counts.shape}")
    if (bad := np.flatnonzero(counts.sum(1) < 1)).size:
        raise UsageError(f"comparison {bad[0]} has no answer")
    return counts
