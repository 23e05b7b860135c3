"""Scores of metrics: the value, the true images' value, and chance."""

import dataclasses
import time
import warnings

import numpy as np

CHANCE_SHIFTS = 16  # mismatched arrangements that a chance level averages over


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of the results, with what it takes to read it.

    Attributes:
      value: of the generated images.
      stderr: its standard error, when it is a mean over images; else None.
      true_pictures: the same for the true images of the same captions, or None.
      chance: the same for the generated images with mismatched captions, or None
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


def measure(metrics, generated, true, log=print):
    """Scores generated and true images, and chance.

    Args:
      metrics: {label: Metric}.
      generated, true: SampleSets of the same examples; true may be None.
      log: called with each line of text for the user.

    Returns:
      ({name: Score}, {name: list of N values}, [warnings]).
    """
    scores, per_image, notes = {}, {}, []
    for label, metric in metrics.items():
        clock = time.time()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values = metric.compute(generated)
            best = {}
            if true is not None:
                # features of captions and reference are the same: computed once
                best = metric.compute(true.share_texts_with(generated))
        texts = [str(w.message) for w in caught if w.category is UserWarning]
        notes += [f"{label}: {text}" for text in dict.fromkeys(texts)]
        chance = _chance(metric, generated) if metric.paired else {}
        for quantity, value in values.items():
            name = f"{label}/{quantity}" if quantity else label
            value = np.asarray(value, dtype=np.float64)
            stderr = None
            if value.ndim:
                per_image[name] = value.tolist()
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
    return scores, per_image, notes


def _chance(metric, samples):
    """{quantity: mean over mismatched captions}."""
    n = len(samples)
    shifts = np.unique(np.linspace(1, n - 1, CHANCE_SHIFTS).astype(int))
    drawn = [metric.compute(samples.mismatched(shift)) for shift in shifts]
    return {q: float(np.mean([np.mean(d[q]) for d in drawn])) for q in drawn[0]}
