"""How good are predicted embeddings of any encoder? No image is needed.

All cosines are of embeddings as they are, of a grid's tokens one after the other. Many
encoders keep all of their embeddings in a narrow cone: read `to_true` against
`to_random` and against `mean_to_true`, what a predictor scores that knows nothing.
"""

import numpy as np

from unclip_jax.evaluation.metrics.checks import (
    as_features,
    paired_cosine,
    same_rows,
    same_width,
    unit_rows,
)
from unclip_jax.evaluation.metrics.distances import blocks
from unclip_jax.evaluation.metrics.ranking import hit_rate_at, mean_rank

KS = (1, 5)


def embedding_metrics(predicted, true, *, redrawn=None, train=None):
    """Scores of predicted embeddings (N, D) given the true ones (N, D).

    Args:
      predicted, true: paired row by row.
      redrawn: (N, D) other draws for the same conditions.
      train: (M, D) targets that the prior learnt from.

    Returns a dict of floats:
      to_true                  mean cosine to the own target.
      to_random                the same to another's target (chance).
      mean_to_true             the same of the mean embedding, of `train` or, without
                               it, of `true` itself (which flatters it a little).
      norm_ratio               mean norm over the true ones' mean norm.
      predicted_to_true@1, @5  how often the own target is among the nearest 1, 5 of all
                               N targets, by cosine; chance is k / N.
      true_to_predicted@1, @5  the same from a target to the predictions.
      two_way                  how often a prediction is nearer to its own target than
                               to another's, over all pairs; chance is 0.5.
      diversity                1 minus the mean cosine of two draws for one condition,
                               over that of two conditions: 0 where all draws are equal,
                               1 where the condition decides nothing. With `redrawn`.
      overconfidence           mean cosine of two draws for one condition minus that of
                               a draw to the own target. A calibrated prior draws as the
                               targets are spread, and has 0; one whose draws agree more
                               with each other than with the truth has more. With
                               `redrawn`.
      nearest_training         mean cosine of the prediction to its nearest training
                               target; true_nearest_training is that of the true ones.
      memorized                share of predictions nearer to a training target than
                               any true one is. These three with `train`.

    Raises:
      UsageError: arrays that are not finite, or not of fitting shapes.
    """
    predicted = as_features(predicted, "predicted", minimum=2)
    true = as_features(true, "true", minimum=2)
    same_rows(predicted, true, ("predicted", "true"))
    queries, targets = unit_rows(predicted), unit_rows(true)
    n, own = len(true), paired_cosine(predicted, true)
    everything = queries.sum(0) @ targets.sum(0)  # all N * N cosines
    scores = {
        "to_true": float(own.mean()),
        "to_random": float((everything - own.sum()) / (n * (n - 1))),
    }
    known = true if train is None else as_features(train, "train", dtype=None)
    same_width(predicted, known, ("predicted", "train"))
    mean = unit_rows(known.mean(0, dtype=np.float64)[None])
    scores["mean_to_true"] = float((targets @ mean[0]).mean())
    norms = (np.linalg.norm(x, axis=1).mean() for x in (predicted, true))
    scores["norm_ratio"] = float(next(norms) / max(next(norms), 1e-30))
    hits, rank = _retrieval(queries, targets)
    scores |= {f"predicted_to_true@{k}": hit for k, hit in hits.items()}
    scores["two_way"] = 1 - (rank - 1) / (n - 1)
    hits, _ = _retrieval(targets, queries)
    scores |= {f"true_to_predicted@{k}": hit for k, hit in hits.items()}
    if redrawn is not None:
        other = as_features(redrawn, "redrawn", minimum=2)
        same_rows(predicted, other, ("predicted", "redrawn"))
        again = paired_cosine(predicted, other)
        every = queries.sum(0) @ unit_rows(other).sum(0)
        apart = 1 - (every - again.sum()) / (n * (n - 1))
        scores["diversity"] = float((1 - again.mean()) / max(apart, 1e-12))
        scores["overconfidence"] = float(again.mean() - own.mean())
    if train is not None:
        nearest, limit = (_nearest(x, known) for x in (queries, targets))
        scores["nearest_training"] = float(nearest.mean())
        scores["true_nearest_training"] = float(limit.mean())
        scores["memorized"] = float((nearest > limit.max() + 1e-9).mean())
    return scores


def _retrieval(queries, targets):
    """({k: fraction found among k}, mean rank, 1 is best) of paired unit rows."""
    n = len(queries)
    found, ranks = dict.fromkeys(KS, 0.0), 0.0
    for rows in blocks(n, n):
        cosines = queries[rows] @ targets.T
        own = cosines[range(len(cosines)), range(rows.start, rows.stop)]
        ranks += mean_rank(own, cosines).sum()
        for k in KS:
            found[k] += hit_rate_at(own, cosines, k).sum()
    return {k: float(hits / n) for k, hits in found.items()}, float(ranks / n)


def _nearest(queries, train):
    """(N,) the largest cosine of each unit row to a row of `train`."""
    best = np.full(len(queries), -np.inf)
    size = max(1, _block_rows(train))
    for start in range(0, len(train), size):
        block = unit_rows(np.asarray(train[start : start + size], np.float64))
        for rows in blocks(len(queries), len(block)):
            cosines = (queries[rows] @ block.T).max(1)
            best[rows] = np.maximum(best[rows], cosines)
    return best


def _block_rows(train) -> int:
    """Rows of `train` that are looked at together: 64 MiB of float64."""
    return (64 << 20) // (8 * train.shape[1])
