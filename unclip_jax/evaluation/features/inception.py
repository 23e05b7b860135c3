"""Inception features of pictures, on all devices of a mesh, in one named convention."""

import functools
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from unclip_jax.evaluation.features import inception_preprocessing
from unclip_jax.evaluation.features.feature_batches import run_batched
from unclip_jax.generation.batching import Programs
from unclip_jax.interop.inception import Inception
from unclip_jax.models.inception import LAYERS, InceptionV3
from unclip_jax.parallel.mesh import make_mesh


# Two programs, so that other sizes and conventions do not compile the network again.
@functools.partial(jax.jit, static_argnames="convention")
def prepare(images, convention):
    """uint8 (N, H, W, 3) -> float32 (N, 299, 299, 3) in the network's range."""
    return inception_preprocessing.find(convention)(images)


@functools.partial(jax.jit, static_argnames="layers")
def features(variables, x, layers):
    """float32 (N, 299, 299, 3) -> tuple of float32 (N, width), one per layer."""
    found = InceptionV3().apply(variables, x)
    return tuple(found[layer] for layer in layers)


class InceptionExtractor:
    """Runs the network over any number of pictures.

    Row i depends on picture i only: not on its batch, nor on how many devices share
    the work (those of this process; see feature_store for several processes).

    Attributes:
      about: what its numbers depend on, for fingerprints and results.
      label: the weights and the convention in words.
    """

    default = "2048"

    def __init__(
        self,
        inception: Inception,
        convention: str,
        layers: Sequence[str] = (default,),
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ):
        """Raises ValueError for an unknown convention or layer."""
        inception_preprocessing.find(convention)
        if unknown := [layer for layer in layers if layer not in LAYERS]:
            raise ValueError(f"layer {unknown[0]!r}: expected one of {[*LAYERS]}")
        self.convention, self.layers = convention, tuple(layers)
        self.label = f"{inception.label}, convention {convention}"
        self.about = {
            "network": "inception-2015-12-05",
            "weights_sha256": inception.fingerprint,
            "convention": convention,
        }
        mesh = mesh or make_mesh(devices=jax.local_devices())
        self._programs = Programs(mesh, batch_size)
        self._variables = self._programs.place_params(inception.variables)

    def image(self, images):
        """{layer: float32 (N, width)} on the host, of uint8 (N, H, W, 3).

        Raises:
          ValueError: other pictures.
        """

        def run(batch):
            x = prepare(batch, self.convention)
            return features(self._variables, x, self.layers)

        widths = [LAYERS[layer] for layer in self.layers]
        found = run_batched(self._programs, images, run, widths)
        return dict(zip(self.layers, found, strict=True))
