"""A frozen autoencoder beside a stage that learns latents.

It encodes batches of images on the devices, in a program of its own before the step,
unless records bring latents; and it shows the latents that previews draw. Its
parameters are on every device and no part of the state.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from unclip_jax.data_spec import DataSpec
from unclip_jax.errors import UsageError
from unclip_jax.parallel import sharding

NAMES = ("latents", "latent_std")


class Autoencoder(Protocol):
    """What is used of interop.frozen_autoencoder.FrozenAutoencoder."""

    fingerprint: str
    part: Any
    has_std: bool

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(h, w, C) of square images."""

    def encode(self, params, images) -> dict[str, jax.Array]:
        """uint8 images -> latents and, where there is one, latent_std."""

    def decode(self, params, latents) -> jax.Array:
        """Latents -> uint8 images."""


class Latents:
    """The autoencoder of a run. Without one batches pass as they are.

    Attributes:
      spec: of the data, with the latents that are made of its images.
    """

    def __init__(self, autoencoder: Autoencoder | None, spec: DataSpec):
        """Fits it to the data.

        Raises UsageError for latents of another autoencoder, or images that it cannot
        encode.
        """
        self._autoencoder, self.spec = autoencoder, spec
        self._encodes = False
        self._decode: Any = None  # until the start
        if autoencoder is None:
            return
        if spec.latent_shape is not None:
            made, given = spec.autoencoder_fingerprint, autoencoder.fingerprint
            if made != given:
                raise UsageError(
                    f"the records hold latents of the autoencoder {str(made)[:12]}..., "
                    f"and config.autoencoder is {given[:12]}...: latents of one mean "
                    "nothing to another; embed again, or name the one that made them"
                )
            return
        if spec.image_size is None:
            raise UsageError("config.autoencoder: the data has no images to encode")
        self._encodes = True
        self.spec = dataclasses.replace(
            spec,
            autoencoder_fingerprint=autoencoder.fingerprint,
            latent_shape=autoencoder.latent_shape(spec.image_size),
            has_latent_std=autoencoder.has_std,
        )

    def start(self, stage, mesh: Mesh) -> None:
        """Puts the autoencoder on the devices.

        Raises UsageError when the stage learns pixels.
        """
        if self._autoencoder is None:
            return
        if "latents" not in stage.batch_spec:
            raise UsageError(
                "config.autoencoder: this stage learns no latents; leave it out, or "
                "set config.model.image_channels"
            )
        whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        self._params = jax.device_put(self._autoencoder.part.params, whole)
        encode = self._autoencoder.encode
        self._encode = jax.jit(encode, out_shardings=rows)
        self._encode_whole = jax.jit(encode, out_shardings=whole)
        self._decode = jax.jit(self._autoencoder.decode, out_shardings=whole)

    def data_spec(self, batch_spec: Mapping[str, Any]) -> dict[str, Any]:
        """What is read of the data for a batch of `batch_spec`."""
        if not self._encodes:
            return dict(batch_spec)
        side = self.spec.image_size
        rest = {name: s for name, s in batch_spec.items() if name not in NAMES}
        return {"image": ((side, side, 3), "uint8"), **rest}

    def encode(
        self, batch: Mapping[str, jax.Array], replicated: bool = False
    ) -> dict[str, jax.Array]:
        """Replaces the images (B, H, W, 3) of a batch on the devices by latents.

        These are split over the devices by rows, or `replicated`.
        """
        if not self._encodes:
            return dict(batch)
        rest = {name: a for name, a in batch.items() if name != "image"}
        encode = self._encode_whole if replicated else self._encode
        return {**encode(self._params, batch["image"]), **rest}

    def decode(self, drawn: jax.Array) -> jax.Array:
        """uint8 images of latents (B, h, w, C); images pass as they are.

        Raises UsageError for latents without an autoencoder.
        """
        if drawn.dtype == np.uint8:
            return drawn
        if self._decode is None:
            raise UsageError(
                "config.preview.every: latents are shown by the autoencoder that made "
                "them; name its folder in config.autoencoder, or set it to 0"
            )
        return self._decode(self._params, drawn)
