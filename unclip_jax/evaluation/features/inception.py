"""Inception features of images, on all devices of a mesh, in one named convention."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.features import ExtractorOptions, inception_preprocessing
from unclip_jax.interop import inception as inception_weights
from unclip_jax.models.inception import LAYERS, InceptionV3
from unclip_jax.parallel.batched_runner import BatchedRunner
from unclip_jax.parallel.mesh import make_mesh


# Two programs, so that other sizes and conventions do not compile the network again.
@functools.partial(jax.jit, static_argnames="convention")
def prepare(images, convention):
    """uint8 (N, H, W, 3) -> float32 (N, 299, 299, 3) in the network's range."""
    return inception_preprocessing.find(convention)(images)


@functools.partial(jax.jit, static_argnames="layers")
def features(variables, x, layers):
    """float32 (N, 299, 299, 3) -> tuple of float32 (N, width), one per layer."""
    outputs = InceptionV3().apply(variables, x)
    return tuple(outputs[layer] for layer in layers)


class InceptionExtractor:
    """Runs the network over any number of images.

    Row i depends on image i only: not on its batch, nor on how many devices share
    the work (those of this process; see store.py for several processes).

    Attributes:
      about: what its numbers depend on, for fingerprints and results.
      label: the weights and the convention in words.
    """

    default = "2048"

    def __init__(
        self,
        inception: inception_weights.Inception,
        convention: str,
        layers: Sequence[str] = (default,),
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ):
        """Raises UsageError for an unknown convention or layer."""
        inception_preprocessing.find(convention)
        if unknown := [layer for layer in layers if layer not in LAYERS]:
            raise UsageError(f"layer {unknown[0]!r}: expected one of {[*LAYERS]}")
        self.convention, self.layers = convention, tuple(layers)
        self.label = f"{inception.label}, convention {convention}"
        self.about = {
            "network": "inception-2015-12-05",
            "weights_sha256": inception.fingerprint,
            "convention": convention,
        }
        mesh = mesh or make_mesh(devices=jax.local_devices())
        self._runner = BatchedRunner(mesh, batch_size)
        self._variables = self._runner.place_params(inception.variables)

    def image(self, images):
        """{layer: float32 (N, width)} on the host, of uint8 (N, H, W, 3).

        Raises:
          UsageError: other images.
        """

        def run(batch):
            x = prepare(batch, self.convention)
            return features(self._variables, x, self.layers)

        widths = [LAYERS[layer] for layer in self.layers]
        outputs = run_batched(self._runner, images, run, widths)
        return dict(zip(self.layers, outputs, strict=True))


@dataclasses.dataclass(frozen=True)
class InceptionOptions(ExtractorOptions):
    """Inception's weights (see `load_inception`) and its convention."""

    convention: str = "pytorch-fid"
    weights: str = ""
    cache: str = ""
    url: str = inception_weights.URL
    sha256: str = inception_weights.SHA256
    batch_size: int = 32

    def load(self, layers):
        inception = inception_weights.load_inception(
            self.weights, self.cache, self.url, self.sha256
        )
        names = dict.fromkeys(layer or InceptionExtractor.default for layer in layers)
        return InceptionExtractor(
            inception, self.convention, tuple(names), self.batch_size
        )


def run_batched(
    runner: BatchedRunner,
    images: np.ndarray,
    run: Callable,
    widths: Sequence[int],
) -> tuple[np.ndarray, ...]:
    """What a network makes of images, batch after batch, one ahead of the host.

    Args:
      runner: where it runs.
      images: uint8 (N, H, W, 3).
      run: batch on the devices -> tuple of arrays (B, width) on the devices.
      widths: of those.

    Returns:
      Arrays (N, width) on the host.

    Raises UsageError for other images.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UsageError(
            f"images must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}"
        )
    if not len(images):
        return tuple(np.zeros((0, width), np.float32) for width in widths)
    return runner.map(run, (images,))
