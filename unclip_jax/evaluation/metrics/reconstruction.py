"""How well does an autoencoder keep images?"""

import numpy as np

from unclip_jax.evaluation.metrics.checks import as_features, same_rows


def reconstruction(absolute, squared) -> dict[str, float]:
    """Scores of images by the errors of what an autoencoder makes of them.

    Args:
      absolute, squared: (N, 1), means over each image, in [-1, 1].

    Returns:
      {"l1"}: mean absolute error; {"psnr"}: the mean over images of their peak signal
      to noise ratio, in decibels; 100 for images without an error.
    """
    absolute = as_features(absolute, "absolute errors", minimum=1)
    squared = as_features(squared, "squared errors", minimum=1)
    same_rows(absolute, squared, ("absolute", "squared"))
    # the peak is the range, of width 2
    psnr = 10 * np.log10(4 / np.maximum(squared, 4e-10))
    return {"l1": float(absolute.mean()), "psnr": float(psnr.mean())}
