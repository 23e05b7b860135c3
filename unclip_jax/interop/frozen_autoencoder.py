"""The autoencoder whose latents a decoder learns: read from any folder, and used."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import process
from unclip_jax.errors import UsageError
from unclip_jax.interop import components, diffusers_autoencoder, native
from unclip_jax.models.autoencoder import Autoencoder

# Where a folder of diffusers may hold one.
PLACES = ("", "movq", "vae", "decoder/movq")
DTYPE = "float16"  # of latents in records and batches


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenAutoencoder:
    """An autoencoder that is not trained.

    Attributes:
      part: the model.
      fingerprint: names it in records, runs and exports.
    """

    part: components.Component
    fingerprint: str

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        load_run: components.LoadRun | None = None,
        dtype: str = "float32",
    ) -> "FrozenAutoencoder":
        """Reads it from a native export, a folder of diffusers or a run.

        Folders of diffusers are those of an AutoencoderKL or VQModel and of pipelines
        that hold one; a run is one of stage autoencoder.

        Raises:
          FileNotFoundError: there is none.
          UsageError: a run of another stage, or broken files.
        """
        root = pathlib.Path(folder)
        if native.is_export(root):
            part = components.read_native(root, "autoencoder", dtype)
        elif found := _find(root):
            config, params = diffusers_autoencoder.load_autoencoder(found[0])
            where = f"the autoencoder of {folder}"
            part = components.build_component(
                "autoencoder", config, params, {}, dtype=dtype, where=where
            )
        elif load_run is None or (root / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{folder} holds no autoencoder: name a pipeline with movq/ or vae/, "
                "such as kandinsky-2-2-decoder"
            )
        else:
            part, _ = components.read_run(folder, "autoencoder", load_run, dtype)
        # what was stored as bfloat16 is still that autoencoder
        fingerprint = part.meta.get("autoencoder_fingerprint")
        computed = native.autoencoder_fingerprint(part.config, part.params)
        return cls(part, fingerprint or computed)

    @property
    def module(self) -> Autoencoder:
        """The Linen module."""
        assert isinstance(self.part.module, Autoencoder)
        return self.part.module

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(h, w, C) of the latents of square images.

        Raises UsageError when it does not divide them.
        """
        side, rest = divmod(image_size, self.module.factor)
        if rest:
            raise UsageError(
                f"images of {image_size} pixels do not divide into latents of "
                f"{self.module.factor}x{self.module.factor}: choose another image_size"
            )
        return side, side, self.module.latent_channels

    @property
    def has_std(self) -> bool:
        """Whether latents are Gaussians."""
        return not self.module.num_codes

    def check_std(self, std: bool) -> None:
        """Raises UsageError when standard deviations are asked for that are not."""
        if std and not self.has_std:
            raise UsageError(
                "config.latent_std: a vector-quantized autoencoder has no standard "
                "deviations of its latents; leave it False"
            )

    def encode(self, params, images, std: bool = True) -> dict[str, jax.Array]:
        """Encodes uint8 images (B, H, W, 3).

        Args:
          params: the parameters, on the devices.
          images: H and W are multiples of the module's factor.
          std: whether the standard deviation is asked for, too.

        Returns:
          {"latents"} and, where there is one, "latent_std": (B, h, w, C) float16,
          scaled.
        """
        bound = self.module.bind({"params": params})
        mean, deviation = bound.encode_moments(process.from_uint8(images))
        made = {"latents": mean}
        if std and deviation is not None:
            made["latent_std"] = deviation
        most = float(np.finfo(DTYPE).max)
        return {k: a.clip(-most, most).astype(jnp.float16) for k, a in made.items()}

    def decode(self, params, latents) -> jax.Array:
        """Draws uint8 images (B, f h, f w, 3) of scaled latents (B, h, w, C)."""
        bound = self.module.bind({"params": params})
        return process.to_uint8(bound.decode(latents.astype(jnp.float32)))


def is_public(folder: str | os.PathLike) -> bool:
    """Whether a folder of diffusers holds an autoencoder."""
    return bool(_find(pathlib.Path(folder)))


def _find(root: pathlib.Path) -> list[pathlib.Path]:
    places = [root / place for place in PLACES]
    return [place for place in places if diffusers_autoencoder.is_autoencoder(place)]
