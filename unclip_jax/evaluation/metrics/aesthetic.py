"""LAION's aesthetic score: how people would rate an image, 1 to 10, guessed from CLIP.

A chain of linear layers 768 -> 1024 -> 128 -> 64 -> 16 -> 1 without activations (the
dropout between them is for training) on L2-normalised ViT-L/14 image embeddings.
Source: christophschuhmann/improved-aesthetic-predictor.
"""

import dataclasses

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.metrics import Metric, Quantity
from unclip_jax.evaluation.metrics.checks import as_features, unit_rows
from unclip_jax.interop.weights import read_tensors


def aesthetic(features, layers):
    """Scores float64 (N,) of image embeddings (N, 768).

    Args:
      features: raw embeddings, normalised here.
      layers: [(weight (out, in), bias (out,))] of the chain.

    Raises:
      UsageError: embeddings or layers of other widths.
    """
    x = unit_rows(as_features(features, "image embeddings"))
    widths = (layers[0][0].shape[1], *(weight.shape[0] for weight, _ in layers))
    if x.shape[1] != widths[0] or widths[-1] != 1:
        raise UsageError(
            f"the aesthetic layers go {' -> '.join(map(str, widths))}, but the image "
            f"embeddings are {x.shape[1]} wide; LAION's are for CLIP ViT-L/14 (768)"
        )
    for weight, bias in layers:
        x = x @ np.asarray(weight, np.float64).T + np.asarray(bias, np.float64)
    return x[:, 0]


def layers_of(tensors):
    """The chain in a file's tensors `layers.N.weight`, `layers.N.bias`, by number.

    Raises:
      UsageError: tensors that are not such a chain.
    """
    numbers = sorted({int(k.split(".")[1]) for k in tensors if k.count(".") == 2})
    names = {f"layers.{n}.{part}" for n in numbers for part in ("weight", "bias")}
    if not names or names != set(tensors):
        raise UsageError(
            "expected tensors layers.N.weight and layers.N.bias, found "
            f"{', '.join(sorted(tensors)[:4])}"
        )
    return [
        (tensors[f"layers.{n}.weight"], tensors[f"layers.{n}.bias"]) for n in numbers
    ]


@dataclasses.dataclass(frozen=True)
class Aesthetic(Metric):
    """The aesthetic score; `weights` is a .pth or .safetensors."""

    weights: str = ""
    features: str = "clip"

    quantities = {"": Quantity("how people would rate the picture, 1 to 10, guessed")}

    def __call__(self, samples):
        if not self.weights:
            raise UsageError(
                "metric 'aesthetic' needs `weights`, a .pth or .safetensors"
            )
        expected = "LAION's sac+logos+ava1-l14-linearMSE.pth, or another such chain"
        layers = layers_of(read_tensors(self.weights, expected))
        return {"": aesthetic(samples.image_features(self.features), layers)}
