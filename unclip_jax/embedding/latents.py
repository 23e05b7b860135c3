"""The latents that records keep of their images, from a frozen autoencoder."""

import jax
import numpy as np

from unclip_jax.interop.frozen_autoencoder import DTYPE, FrozenAutoencoder
from unclip_jax.parallel.batched_runner import BatchedRunner
from unclip_jax.parallel.mesh import make_mesh

ROWS = 8  # images a device: large ones take much memory


class LatentEncoder:
    """Encodes the images of a batch, on all local devices.

    Attributes:
      fingerprint: of the autoencoder.
    """

    def __init__(self, autoencoder: FrozenAutoencoder, std: bool = False):
        """`std`: whether standard deviations are kept; UsageError if there are none."""
        autoencoder.check_std(std)
        self.fingerprint = autoencoder.fingerprint
        self._autoencoder, self._std = autoencoder, std
        devices = jax.local_devices()
        self._runner = BatchedRunner(make_mesh(devices=devices), ROWS * len(devices))
        self._params = self._runner.place_params(autoencoder.part.params)
        self._encode = jax.jit(autoencoder.encode, static_argnames="std")

    def arrays(self, image_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """{name: (dtype, shape)} of what is kept of an image; raises latent_shape's."""
        shape = self._autoencoder.latent_shape(image_size)
        names = ("latents", "latent_std") if self._std else ("latents",)
        return {name: (DTYPE, shape) for name in names}

    def encode(self, images: list[np.ndarray]) -> list[dict[str, jax.Array]]:
        """{"latents", "latent_std"} of uint8 images (H, W, 3), part by part.

        Returns before they are ready. The last part ends with padding.
        """
        size = self._runner.batch_size
        parts = [np.stack(images[i : i + size]) for i in range(0, len(images), size)]
        return [
            self._encode(self._params, self._runner.place(part), std=self._std)
            for part in parts
        ]
