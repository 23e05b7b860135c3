"""How good are the image embeddings a prior draws from captions?

All cosines are of raw CLIP embeddings.  `to_true` alone says little, because all
embeddings of a CLIP lie in a narrow cone: read it against `to_random`, and against the
`to_true` of an embedding that knows of no caption, the mean of all (see priors.py).
"""

import numpy as np

from unclip_jax.evaluation.metrics.checks import (
    as_features,
    paired_cosine,
    same_rows,
    unit_rows,
)
from unclip_jax.evaluation.metrics.distances import blocks
from unclip_jax.evaluation.metrics.ranking import hit_rate_at, mean_rank


def prior_metrics(predicted, true, text):
    """Scores of predicted z_i (N, D) given the true z_i and the z_t of its caption.

    Returns a dict of floats:
      to_true        mean cosine to the caption's own image.
      to_random      the same to another caption's image (the baseline).
      to_text        mean cosine to the caption's embedding.
      true_to_text   the same of the true image: what `to_text` should look like.
      dot            mean dot product z_i . z_t, not normalised.
      norm_ratio     mean norm over the true images' mean norm.
      rank           mean rank of the own image among all N, as a fraction of N
                     (0 best, 0.5 chance).
      top1           how often the own image is the nearest of all N.
    """
    predicted = as_features(predicted, "predicted z_i", minimum=2)
    true = as_features(true, "true z_i", minimum=2)
    text = as_features(text, "z_t", minimum=2)
    same_rows(predicted, true, ("predicted", "true"))
    same_rows(predicted, text, ("predicted", "text"))
    n = predicted.shape[0]
    ranks, hits = np.empty(n), np.empty(n)
    queries, candidates = unit_rows(predicted), unit_rows(true)
    # The baseline is the mean over all mismatched pairs, not one shuffle's luck.
    everything = queries.sum(axis=0) @ candidates.sum(axis=0)
    to_true = paired_cosine(predicted, true)
    for rows in blocks(n, n):
        scores = queries[rows] @ candidates.T
        own = scores[range(scores.shape[0]), range(rows.start, rows.stop)]
        ranks[rows] = mean_rank(own, scores)
        hits[rows] = hit_rate_at(own, scores, 1)
    norms = np.linalg.norm(predicted, axis=1), np.linalg.norm(true, axis=1)
    return {
        "to_true": float(to_true.mean()),
        "to_random": float((everything - to_true.sum()) / (n * (n - 1))),
        "to_text": float(paired_cosine(predicted, text).mean()),
        "true_to_text": float(paired_cosine(true, text).mean()),
        "dot": float(np.einsum("nd,nd->n", predicted, text).mean()),
        "norm_ratio": float(norms[0].mean() / max(norms[1].mean(), 1e-30)),
        "rank": float((ranks.mean() - 1) / (n - 1)),
        "top1": float(hits.mean()),
    }
