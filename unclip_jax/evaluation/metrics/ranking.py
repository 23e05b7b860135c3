"""How often the right answer is among the k best, with ties counted fairly."""

import numpy as np

TIE = 1e-9  # cosines nearer than this are one and the same number


def hit_rate_at(true_score, scores, k):
    """Probability that the right answer is among the k best of its row.

    Ties are broken at random, in expectation: an encoder that gives every image
    the same features scores exactly at chance, not 100%.

    Args:
      true_score: (N,) the score of the right answer.
      scores: (N, C) the scores of all candidates, the right answer among them.
      k: how many guesses are allowed.

    Returns:
      float64 (N,) between 0 and 1.
    """
    gap = scores - true_score[:, None]
    better = np.sum(gap > TIE, axis=1)
    equal = np.sum(np.abs(gap) <= TIE, axis=1)  # includes the right answer itself
    return np.clip((k - better) / equal, 0.0, 1.0)


def mean_rank(true_score, scores):
    """Expected rank (1 = best) of the right answer in each row: float64 (N,)."""
    gap = scores - true_score[:, None]
    equal = np.sum(np.abs(gap) <= TIE, axis=1)
    return 1.0 + np.sum(gap > TIE, axis=1) + (equal - 1) / 2.0
