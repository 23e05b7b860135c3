"""Inception features of pictures, on all devices of a mesh, in one named convention."""

import functools

import jax
import numpy as np

from unclip_jax.evaluation import conventions
from unclip_jax.generation.programs import Programs
from unclip_jax.interop.inception import Inception
from unclip_jax.models.inception import LAYERS, InceptionV3
from unclip_jax.parallel.mesh import make_mesh


# Two programs, so that other sizes and conventions do not compile the network again.
@functools.partial(jax.jit, static_argnames="convention")
def prepare(images, convention):
    """uint8 (N, H, W, 3) -> float32 (N, 299, 299, 3) in the network's range."""
    return conventions.find(convention)(images)


@functools.partial(jax.jit, static_argnames="layers")
def features(variables, x, layers):
    """float32 (N, 299, 299, 3) -> tuple of float32 (N, width), one per layer."""
    found = InceptionV3().apply(variables, x)
    return tuple(found[layer] for layer in layers)


class InceptionExtractor:
    """Runs the network over any number of pictures.

    Row i depends on picture i only: not on its batch, nor on how many devices and
    processes share the work.

    Attributes:
      about: what its numbers depend on, for fingerprints and results.
    """

    def __init__(self, inception: Inception, convention, mesh=None, batch_size=32):
        """Raises ValueError for an unknown convention."""
        conventions.find(convention)
        self.convention = convention
        self.about = {
            "network": "inception-2015-12-05",
            "weights": inception.label,
            "weights_sha256": inception.fingerprint,
            "convention": convention,
        }
        self._programs = Programs(mesh or make_mesh(), batch_size)
        self._variables = self._programs.place_params(inception.variables)

    def image(self, images, layers=("2048",)):
        """Tuple of float32 (N, width) on the host, for names of models' LAYERS.

        Args:
          images: uint8 (N, H, W, 3).

        Raises:
          ValueError: other pictures, or an unknown layer.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"pictures must be uint8 (N, H, W, 3), got {images.dtype} "
                f"{images.shape}"
            )
        if unknown := [layer for layer in layers if layer not in LAYERS]:
            raise ValueError(f"layer {unknown[0]!r}: expected one of {[*LAYERS]}")
        out = [[] for _ in layers]
        for rows in self._programs.chunks(len(images)):
            (batch,) = self._programs.place([images[rows]], len(images))
            batch = prepare(batch, self.convention)
            found = features(self._variables, batch, tuple(layers))
            for kept, array in zip(out, found, strict=True):
                kept.append(self._programs.fetch(array, rows.stop - rows.start))
        return tuple(
            np.concatenate(kept) if kept else np.zeros((0, LAYERS[layer]), np.float32)
            for kept, layer in zip(out, layers, strict=True)
        )
