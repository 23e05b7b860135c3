"""CLIP score: how well an image agrees with its caption, as a CLIP sees it.

Three conventions are in use, and the number means nothing without its name:

  hessel        2.5 * max(cos, 0), averaged over pairs; its authors prefix captions
                with "A photo depicts" (Hessel et al. 2021).  The prefix is the
                caller's business: it changes the text features.
  torchmetrics  100 * mean cos, clamped at 0 after averaging.
  cosine        the plain mean cosine.
"""

import dataclasses

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features, paired_cosine, same_rows

CONVENTIONS = ("hessel", "torchmetrics", "cosine")
HESSEL_PREFIX = "A photo depicts "


def clip_score(image, text, convention="cosine"):
    """CLIP score of paired CLIP features image (N, D) and text (N, D): a float.

    Raises what `clip_scores` does.
    """
    score = float(clip_scores(image, text, convention).mean())
    return max(score, 0.0) if convention == "torchmetrics" else score


def clip_scores(image, text, convention="cosine"):
    """What each pair adds to the mean of a CLIP score: float64 (N,).

    Args:
      image, text: paired CLIP features (N, D).
      convention: one of CONVENTIONS; torchmetrics clamps the mean, not these.

    Raises:
      UsageError: unknown convention, unpaired shapes, NaN features.
    """
    if convention not in CONVENTIONS:
        raise UsageError(
            f"clip_score convention {convention!r}: expected one of {CONVENTIONS}"
        )
    image, text = as_features(image, "image"), as_features(text, "text")
    same_rows(image, text)
    cosine = paired_cosine(image, text)
    if convention == "hessel":
        return 2.5 * np.maximum(cosine, 0.0)
    return 100.0 * cosine if convention == "torchmetrics" else cosine


@dataclasses.dataclass(frozen=True)
class ClipScore(Metric):
    """The agreement of images and their captions; see `clip_score`."""

    convention: str = "cosine"
    features: str = "clip"

    paired = True
    quantities = {
        "": Quantity(
            "how well a picture fits its caption: the cosine of CLIP's embeddings "
            "of both (hessel: x 2.5, torchmetrics: x 100); judge it by the true "
            "pictures' and by chance"
        )
    }

    def __call__(self, samples):
        prefix = HESSEL_PREFIX if self.convention == "hessel" else ""
        image = samples.image_features(self.features)
        text = samples.text_features(self.features, prefix)
        if self.convention == "torchmetrics":  # of all, not of each
            return {"": clip_score(image, text, self.convention)}
        return {"": clip_scores(image, text, self.convention)}
