"""DINOv2's vision transformer (Oquab et al. 2023), whose features compare pictures.

No stage uses it: it is a yardstick beside Inception's (Stein et al. 2023).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from unclip_jax.models import layers
from unclip_jax.models.dense import Dense
from unclip_jax.shapes import Array, States


class ScaledBlock(nn.Module):
    """Pre-LN block whose branches have a scale per channel; shaped for `nn.scan`."""

    num_heads: int
    mlp_ratio: float
    dtype: Any

    @nn.compact
    def __call__(self, x: States, _):
        """(B, S, W) -> (B, S, W), None: a carry and no output, for `nn.scan`."""
        width = x.shape[-1]

        def scaled(name, branch):
            scale = self.param(name, nn.initializers.ones, (width,))
            return branch * scale.astype(self.dtype)

        norm = {"epsilon": 1e-6, "dtype": self.dtype}
        y = layers.LayerNorm(**norm, name="ln_1")(x)
        y = layers.Attention(self.num_heads, self.dtype, name="attn")(y)
        x = x + scaled("scale_1", y)
        y = layers.LayerNorm(**norm, name="ln_2")(x)
        y = Dense(round(width * self.mlp_ratio), dtype=self.dtype, name="fc_1")(y)
        y = layers.gelu(y)
        y = Dense(width, dtype=self.dtype, name="fc_2")(y)
        return x + scaled("scale_2", y), None


class DinoV2(nn.Module):
    """Pictures (B, S, S, 3), normalised -> the class token's state (B, W) float32."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"]):
        """Runs the class's map on images whose sides are multiples of the patch."""
        b, p = len(images), self.patch_size
        x = nn.Conv(
            self.width,
            (p, p),
            strides=p,
            padding="VALID",
            dtype=self.dtype,
            name="patch_embedding",
        )(images.astype(self.dtype))
        x = x.reshape(b, -1, self.width)  # (B, P, W)
        init = nn.initializers.normal(0.02)
        cls = self.param("class_embedding", init, (self.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, self.width)), x], axis=1)
        pos = self.param("positional_embedding", init, (x.shape[1], self.width))
        x = x + pos.astype(self.dtype)  # (B, 1 + P, W)
        blocks = nn.scan(
            ScaledBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        fields = self.num_heads, self.mlp_ratio, self.dtype
        x, _ = blocks(*fields, name="blocks")(x, None)
        norm = layers.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="ln_final")
        return norm(x[:, 0])
