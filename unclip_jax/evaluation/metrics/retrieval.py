"""Retrieval R@k in both directions, for judging a CLIP on paired examples."""

import dataclasses

from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features, same_rows, unit_rows
from unclip_jax.evaluation.metrics.distances import blocks
from unclip_jax.evaluation.metrics.ranking import hit_rate_at


def retrieval(image, text, ks=(1, 5, 10)):
    """R@k of paired CLIP features image (N, D), text (N, D), over all N candidates.

    Returns:
      {"text_to_image@1": ..., "image_to_text@1": ..., "text_to_image@5": ...}.
    """
    image = unit_rows(as_features(image, "image"))
    text = unit_rows(as_features(text, "text"))
    same_rows(image, text)
    out = {}
    for k in ks:
        out[f"text_to_image@{k}"] = _recall(text, image, k)
        out[f"image_to_text@{k}"] = _recall(image, text, k)
    return out


def _recall(queries, candidates, k):
    """Fraction of queries (N, D) whose own candidate (N, D) is among the k best."""
    total = 0.0
    for rows in blocks(queries.shape[0], candidates.shape[0]):
        scores = queries[rows] @ candidates.T
        true = scores[range(scores.shape[0]), range(rows.start, rows.stop)]
        total += hit_rate_at(true, scores, k).sum()
    return float(total / queries.shape[0])


def _quantity(k, question):
    place = "the nearest" if k == 1 else f"among the {k} nearest"
    return Quantity(f"{question} {place} of all", percent=True)


@dataclasses.dataclass(frozen=True)
class Retrieval(Metric):
    """R@k over all images and captions; see `retrieval`."""

    features: str = "clip"

    paired = True
    quantities = {
        f"{direction}@{k}": _quantity(k, question)
        for k in (1, 5, 10)
        for direction, question in (
            ("text_to_image", "a caption's own picture is"),
            ("image_to_text", "a picture's own caption is"),
        )
    }

    def __call__(self, samples):
        image = samples.image_features(self.features)
        return retrieval(image, samples.text_features(self.features))
