"""R-precision: can the caption be told from the image?

For each image, the CLIP cosine ranks its own caption among `pool - 1` captions of
other images; the score is how often its own comes first (Xu et al. 2018, with
CLIP as the ranker, Park et al. 2021).  Chance is 1 / pool.
"""

import dataclasses

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features, same_rows, unit_rows
from unclip_jax.evaluation.metrics.ranking import hit_rate_at


def r_precision(image, text, **options):
    """Fraction of images whose own caption is among the k best; see `find_captions`."""
    return float(find_captions(image, text, **options).mean())


def find_captions(image, text, pool=100, k=1, seed=0, groups=None):
    """Whether each image's own caption is among the k best of `pool`: (N,), 0 to 1.

    Args:
      image, text: paired CLIP features (N, D).
      pool: candidates per image, its own caption included.
      k: how many guesses are allowed.
      seed: draws the mismatched captions; image i's draw depends on (seed, i).
      groups: optional N hashable values (the captions, or what they say); a text of
        the image's own group is never drawn as a mismatch.

    Raises:
      UsageError: fewer than `pool` candidates for some image.
    """
    image, text = as_features(image, "image"), as_features(text, "text")
    same_rows(image, text)
    n = image.shape[0]
    if not 1 <= k <= pool or pool < 2:
        raise UsageError(f"r_precision needs 1 <= k <= pool >= 2, got {k=}, {pool=}")
    image, text = unit_rows(image), unit_rows(text)
    numbers = {}  # group -> a number of its own
    groups = range(n) if groups is None else groups
    group = np.array([numbers.setdefault(g, len(numbers)) for g in groups])
    hits = np.empty(n)
    for i in range(n):
        others = np.flatnonzero(group != group[i])
        if others.size < pool - 1:
            raise UsageError(
                f"r_precision pool = {pool} needs {pool - 1} other captions, but "
                f"only {others.size} of {n} differ from number {i}; evaluate more "
                f"captions or set pool to at most {others.size + 1}"
            )
        draw = np.random.default_rng((seed, i)).choice(others, pool - 1, replace=False)
        scores = text[np.append(draw, i)] @ image[i]
        hits[i] = hit_rate_at(scores[-1:], scores[None], k)[0]
    return hits


@dataclasses.dataclass(frozen=True)
class RPrecision(Metric):
    """How often CLIP finds the caption of an image; see `find_captions`."""

    pool: int = 100
    k: int = 1
    seed: int = 0
    features: str = "clip"

    paired = True
    quantities = {
        "": Quantity(
            "how often CLIP picks a picture's own caption out of a pool of them "
            "(100 unless options say otherwise)",
            percent=True,
        )
    }

    @property
    def minimum(self):
        return self.pool

    def __call__(self, samples):
        image = samples.image_features(self.features)
        text = samples.text_features(self.features)
        groups = samples.caption_groups
        return {"": find_captions(image, text, self.pool, self.k, self.seed, groups)}
