"""Zero-shot classification: name an image by the nearest class prompt."""

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.metrics.checks import as_features, unit_rows
from unclip_jax.evaluation.metrics.ranking import hit_rate_at


def class_embeddings(text):
    """One unit vector per class from prompts' features (classes, templates, D).

    Templates are normalised, averaged, and normalised again (Radford et al. 2021).
    """
    text = np.asarray(text, dtype=np.float64)
    if text.ndim != 3:
        raise UsageError(
            f"class text features must be (classes, templates, D), got {text.shape}"
        )
    return unit_rows(unit_rows(text).mean(axis=1))


def zero_shot_accuracy(image, text, labels, k=1):
    """Fraction of images whose class is among the k nearest class embeddings.

    Args:
      image: CLIP features (N, D).
      text: CLIP features (classes, templates, D) of the classes' prompts.
      labels: int (N,) class numbers.
    """
    image = unit_rows(as_features(image, "image"))
    classes = class_embeddings(text)
    labels = np.asarray(labels)
    if labels.shape != image.shape[:1]:
        raise UsageError(f"{labels.shape} labels for {image.shape[0]} images")
    if labels.min() < 0 or labels.max() >= classes.shape[0]:
        raise UsageError(
            f"labels run from {labels.min()} to {labels.max()}, but there are "
            f"{classes.shape[0]} classes"
        )
    scores = image @ classes.T
    true = scores[np.arange(image.shape[0]), labels]
    return float(hit_rate_at(true, scores, k).mean())


def zero_shot(image, text, labels, prompts, ks=(1, 5)):
    """Top-k accuracies of a CLIP: {"top1": ..., "top5": ...}; chance is k / classes.

    Args:
      image: features (N, D); rows past the labels are ignored.
      text: features of the prompts, class by class; rows past them are ignored.
      labels: int (N,) class numbers.
      prompts: (classes, templates).
    """
    classes, templates = prompts
    text = np.reshape(text[: classes * templates], (classes, templates, -1))
    image = image[: len(labels)]
    return {f"top{k}": zero_shot_accuracy(image, text, labels, k) for k in ks}
