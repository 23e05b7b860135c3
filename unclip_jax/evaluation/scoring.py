"""Scores of metrics: the value, the true pictures' value, and chance."""

import dataclasses
import time
import warnings

import numpy as np

CHANCE_SHIFTS = 16  # mismatched arrangements that a chance level averages over


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of the results, with what it takes to read it.

    Attributes:
      value: of the generated pictures.
      stderr: its standard error, when it is a mean over pictures; else None.
      true_pictures: the same for the true pictures of the same captions, or None.
      chance: the same for the generated pictures with mismatched captions, or None
        when the metric does not look at captions.
      better: "higher", "lower" or "".
      percent: whether 1.0 reads as 100%.
      text: what it says, in one line.
    """

    value: float
    stderr: float | None
    true_pictures: float | None
    chance: float | None
    better: str
    percent: bool
    text: str


def measure(metrics, pictures, truth, log=print):
    """Score generated and true pictures, and chance.

    Args:
      metrics: [(label, Metric, options)].
      pictures, truth: Pictures of the same examples; truth may be None.

    Returns:
      ({name: Score}, {name: list of N values}, [warnings]).
    """
    scores, per_picture, notes = {}, {}, []
    # CLIP features of captions and reference are the same for both: compute once.
    for label, metric, options in metrics:
        clock = time.time()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = metric.compute(pictures, **options)
            best = {}
            if truth is not None:
                truth.share_texts_with(pictures)
                best = metric.compute(truth, **options)
        texts = [str(w.message) for w in caught if w.category is UserWarning]
        notes += [f"{label}: {text}" for text in dict.fromkeys(texts)]
        chance = _chance(metric, pictures, options) if metric.paired else {}
        for quantity, value in got.items():
            name = f"{label}/{quantity}" if quantity else label
            value = np.asarray(value, dtype=np.float64)
            stderr = None
            if value.ndim:
                per_picture[name] = value.tolist()
                stderr = float(value.std() / np.sqrt(value.size))
            about = metric.quantities[quantity]
            scores[name] = Score(
                value=float(value.mean()),
                stderr=stderr,
                true_pictures=float(np.mean(best[quantity])) if best else None,
                chance=chance.get(quantity),
                better=about.better,
                percent=about.percent,
                text=about.text,
            )
        log(f"{label}: {time.time() - clock:.1f} s")
    return scores, per_picture, notes


def _chance(metric, pictures, options):
    """{quantity: mean over mismatched captions}."""
    n = len(pictures)
    shifts = np.unique(np.linspace(1, n - 1, CHANCE_SHIFTS).astype(int))
    got = [metric.compute(pictures.mismatched(s), **options) for s in shifts]
    return {q: float(np.mean([np.mean(g[q]) for g in got])) for q in got[0]}
