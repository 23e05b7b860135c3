"""The upsamplers: ADM UNets conditioned on a smaller picture (paper, appendix C).

No caption, no CLIP embedding, no guidance and no attention, so that a model trained on
crops is applied to pictures of any size.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.models.unet import UNet
from unclip_jax.shapes import Images, OutputImages, Resized, Times

RESIZE = ("bilinear", "bicubic")


class Upsampler(nn.Module):
    """Denoises a picture given a smaller one of the same scene.

    `image_size` and `low_res_size` are the sides of whole pictures, for which the model
    is meant; it takes crops too. `resize` is how the smaller picture is brought to the
    size of the larger one: "bilinear", or "bicubic" as public checkpoints want it.
    `residual` adds it to the output, so that a model which predicts x0 starts from the
    enlarged picture; the paper's models predict noise, which has no use for it.
    """

    image_size: int
    low_res_size: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int | tuple[int, ...]
    patch_size: int = 1
    resize: str = "bilinear"
    residual: bool = False
    learned_sigma: bool = False
    scale_shift: bool = True
    dropout: float = 0.0
    norm_groups: int = 32
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        """Declares the UNet; UsageError for sizes that do not divide."""
        if self.image_size % self.low_res_size:
            raise UsageError(
                f"image_size {self.image_size} must be a multiple of low_res_size "
                f"{self.low_res_size}"
            )
        if self.resize not in RESIZE:
            raise UsageError(
                f"resize {self.resize!r}: expected one of {', '.join(RESIZE)}"
            )
        self.unet = UNet(
            image_size=self.image_size,
            out_channels=6 if self.learned_sigma else 3,
            channels=self.channels,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            patch_size=self.patch_size,
            scale_shift=self.scale_shift,
            dropout=self.dropout,
            norm_groups=self.norm_groups,
            remat=self.remat,
            dtype=self.dtype,
        )

    def __call__(
        self,
        x_t: Images,
        t: Times,
        low_res: Resized,
        deterministic: bool = True,
    ) -> OutputImages:
        """Predicts the noise (or what config.diffusion.prediction says).

        Args:
          x_t: (B, H, W, 3) noised images, x_0 in [-1, 1].
          t: (B,) integer timesteps.
          low_res: (B, h, w, 3) in [-1, 1], the same part of the scene.
          deterministic: no dropout.

        Returns:
          (B, H, W, 3) float32, or (B, H, W, 6) with `learned_sigma`.

        Raises UsageError when H and W do not divide by the UNet's total down-sampling.
        """
        self._check_sides(x_t.shape)
        low_res = upsample(low_res, x_t.shape[1:3], self.resize)
        x = jnp.concatenate([x_t, low_res], axis=-1)  # (B, H, W, 6)
        out = self.unet(x, t, deterministic=deterministic)
        if self.residual:
            out = out.at[..., :3].add(low_res)
        return out

    def _check_sides(self, shape):
        factor = self.patch_size * 2 ** (len(self.channel_mult) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise UsageError(
                f"a picture of {shape[1]}x{shape[2]} does not divide by {factor}, the "
                f"upsampler's patch_size times its down-samplings"
            )


def upsample(
    low_res: Resized,
    size: tuple[int, int],
    method: str = "bilinear",
) -> Resized:
    """(B, h, w, C) -> (B, *size, C) float32, half-pixel centres, edges replicated.

    "bicubic" is Keys' kernel with a = -0.5, as Pillow's and torch's antialiased one.
    """
    shape = (low_res.shape[0], *size, low_res.shape[-1])
    return jax.image.resize(low_res.astype(jnp.float32), shape, method)
