"""DINOv2 features of images, for the Frechet distance of Stein et al. 2023.

Images are resized to 224 pixels as clean-fid does (Pillow's bicubic filter), then
take ImageNet's mean and deviation; the feature is the class token's state.
"""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.features import ExtractorOptions, refuse_layers
from unclip_jax.evaluation.features.inception import run_batched
from unclip_jax.evaluation.features.inception_preprocessing import (
    Convention,
    pillow_bicubic,
)
from unclip_jax.interop.dinov2 import load_dinov2
from unclip_jax.interop.inception import fingerprint
from unclip_jax.models.dinov2 import DinoV2
from unclip_jax.parallel.batched_runner import BatchedRunner
from unclip_jax.parallel.mesh import make_mesh

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224


def _normalise(x):
    return (jnp.clip(x, 0.0, 255.0) / 255.0 - jnp.array(MEAN)) / jnp.array(STD)


@functools.partial(jax.jit, static_argnames="size")
def prepare(images, size=SIZE):
    """uint8 (N, H, W, 3) -> float32 (N, size, size, 3) in the network's range."""
    return Convention(pillow_bicubic, _normalise)(images, size)


@functools.partial(jax.jit, static_argnames="module")
def features(params, x, module):
    """float32 (N, S, S, 3) -> float32 (N, W); in float32 on accelerators, too."""
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, x)


class DinoExtractor:
    """As inception.InceptionExtractor; its one layer is ""."""

    default = ""

    def __init__(
        self,
        folder: str | os.PathLike,
        batch_size: int = 32,
        image_size: int = SIZE,
        mesh: Mesh | None = None,
    ):
        """Raises what load_dinov2 does."""
        fields, params = load_dinov2(folder, image_size)
        self._module = DinoV2(**fields)
        sha256 = fingerprint(params)
        self.label = f"DINOv2 {sha256[:12]}, {image_size} px"
        self.about = {"network": "dinov2", "weights_sha256": sha256, "size": image_size}
        mesh = mesh or make_mesh(devices=jax.local_devices())
        self._runner = BatchedRunner(mesh, batch_size)
        self._params = self._runner.place_params(params)

    def image(self, images):
        """{"": float32 (N, W)} on the host, of uint8 (N, H, W, 3).

        Raises UsageError for other images.
        """

        def run(batch):
            x = prepare(batch, self._module.image_size)
            return (features(self._params, x, self._module),)

        (rows,) = run_batched(self._runner, images, run, [self._module.width])
        return {"": rows}


@dataclasses.dataclass(frozen=True)
class DinoOptions(ExtractorOptions):
    """DINOv2's `weights`, a folder of transformers' Dinov2Model."""

    weights: str = ""
    batch_size: int = 32

    def load(self, layers):
        refuse_layers(layers, "DINOv2")
        if not self.weights:
            raise UsageError(
                "an extractor 'dinov2' needs `weights`, a folder of transformers' "
                "Dinov2Model (facebook/dinov2-large, as the literature)"
            )
        return DinoExtractor(self.weights, self.batch_size)
