"""CLIP: a vision transformer and a causal text transformer in one space.

Radford et al. 2021; the fields cover OpenAI's models (quick_gelu), OpenCLIP's
(gelu) and the unCLIP paper's ViT-H/16 at 256 px.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Num

from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.dense import Dense
from unclip_jax.models.text_transformer import eot_position
from unclip_jax.shapes import Array, Embeddings, TextStates, Tokens, Vector

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionTransformer(nn.Module):
    """Images (B, S, S, 3), normalised -> the class token's feature (B, W)."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float
    activation: str
    scan_layers: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"]) -> Vector:
        """(B, S, S, 3) -> (B, W); UsageError for another S."""
        b = images.shape[0]
        if images.shape[1:] != (self.image_size, self.image_size, 3):
            raise UsageError(
                f"CLIP takes images of {self.image_size}x{self.image_size}x3, got "
                f"{'x'.join(map(str, images.shape[1:]))}: resize them first"
            )
        x = nn.Conv(
            self.width,
            (self.patch_size, self.patch_size),
            strides=self.patch_size,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(images)
        x = x.reshape(b, -1, self.width)  # (B, P, W)
        init = nn.initializers.normal(self.width**-0.5)
        cls = self.param("class_embedding", init, (self.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, self.width)), x], axis=1)
        pos = self.param("positional_embedding", init, (x.shape[1], self.width))
        x = x + pos.astype(self.dtype)  # (B, 1 + P, W)
        x = layers.LayerNorm(dtype=self.dtype, name="ln_pre")(x)
        x = layers.Transformer(
            self.depth,
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            activation=self.activation,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
            name="transformer",
        )(x)
        return layers.LayerNorm(dtype=self.dtype, name="ln_post")(x[:, 0])


class CLIPTextTransformer(nn.Module):
    """Tokens (B, L) -> states after the final LayerNorm (B, L, W)."""

    vocab_size: int
    context_length: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float
    activation: str
    scan_layers: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens):
        """int32 (B, L) -> (B, L, W); UsageError for L above the context length."""
        length = tokens.shape[1]
        if length > self.context_length:
            raise UsageError(
                f"CLIP's context is {self.context_length} tokens, got {length}"
            )
        x = nn.Embed(
            self.vocab_size,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )(tokens)  # (B, L, W)
        pos = self.param(
            "positional_embedding",
            nn.initializers.normal(0.01),
            (self.context_length, self.width),
        )
        x = x + pos[:length].astype(self.dtype)
        x = layers.Transformer(
            self.depth,
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            activation=self.activation,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
            name="transformer",
        )(x, layers.causal_bias(length))
        return layers.LayerNorm(dtype=self.dtype, name="ln_final")(x)


class CLIP(nn.Module):
    """Both towers and the logit scale. Embeddings come out raw, in float32.

    With `vision_depth` 0 there is no image tower: some public unCLIPs draw from text
    and leave it out. Without `text_projects` texts have states, but no embedding: the
    text encoder of Stable unCLIP, whose image tower is another CLIP's.
    """

    embed_dim: int
    image_size: int
    patch_size: int
    vision_width: int
    vision_depth: int
    vision_heads: int
    vocab_size: int
    context_length: int
    text_width: int
    text_depth: int
    text_heads: int
    eot_id: int
    vision_mlp_ratio: float = 4.0  # bigG's is 8192 / 1664
    text_mlp_ratio: float = 4.0
    activation: str = "gelu"
    text_activation: str | None = None  # None: activation
    text_projects: bool = True
    image_mean: tuple[float, ...] = OPENAI_MEAN
    image_std: tuple[float, ...] = OPENAI_STD
    scan_layers: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    def setup(self):
        """Declares the towers, the projections and the logit scale."""
        shared = {
            "activation": self.activation,
            "scan_layers": self.scan_layers,
            "remat": self.remat,
            "dtype": self.dtype,
        }
        if self.vision_depth:
            self.vision = VisionTransformer(
                self.image_size,
                self.patch_size,
                self.vision_width,
                self.vision_depth,
                self.vision_heads,
                self.vision_mlp_ratio,
                **shared,
            )
        self.text = CLIPTextTransformer(
            self.vocab_size,
            self.context_length,
            self.text_width,
            self.text_depth,
            self.text_heads,
            self.text_mlp_ratio,
            **{**shared, "activation": self.text_activation or self.activation},
        )
        projection = {"use_bias": False, "dtype": self.dtype}
        if self.vision_depth:
            self.visual_projection = Dense(self.embed_dim, **projection)
        if self.text_projects:
            self.text_projection = Dense(self.embed_dim, **projection)
        # exp(logit_scale) starts at 1 / 0.07 (Radford et al. 2021, section 2.5)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(2.6592600), ()
        )

    def encode_image(self, images: Num[Array, "batch height width 3"]) -> Embeddings:
        """uint8 images (B, S, S, 3) -> raw embeddings (B, D) float32.

        Raises UsageError without an image tower.
        """
        self._check_vision()
        x = images.astype(jnp.float32) / 255
        x = (x - jnp.array(self.image_mean)) / jnp.array(self.image_std)
        return self.encode_normalized(x)

    def encode_normalized(self, x: Float[Array, "batch height width 3"]) -> Embeddings:
        """Normalized float images (B, S, S, 3) -> raw embeddings (B, D) float32."""
        self._check_vision()
        feature = self.vision(x.astype(self.dtype))
        return self.visual_projection(feature).astype(jnp.float32)

    def _check_vision(self):
        if not self.vision_depth:
            raise UsageError("this CLIP has no image tower (vision_depth is 0)")

    def text_states(self, tokens: Tokens) -> TextStates:
        """int32 tokens (B, L) -> states after the final LayerNorm (B, L, W)."""
        return self.text(tokens)

    def encode_text(self, tokens: Tokens) -> Embeddings:
        """int32 tokens (B, L) -> raw embeddings (B, D) float32.

        Raises UsageError for a text encoder without projection.
        """
        if not self.text_projects:
            raise UsageError(
                "this text encoder makes states, but no embedding beside images"
            )
        states = self.text(tokens)
        eot = eot_position(tokens, self.eot_id)
        pooled = states[jnp.arange(tokens.shape[0]), eot]  # (B, W)
        return self.text_projection(pooled).astype(jnp.float32)

    def __call__(self, images: Num[Array, "batch height width 3"], tokens: Tokens):
        """Returns (image embeddings, text embeddings), both raw (B, D).

        Without an image tower the images are not looked at and None is returned; of a
        text encoder without projection, the states.
        """
        image = self.encode_image(images) if self.vision_depth else None
        encode = self.encode_text if self.text_projects else self.text_states
        return image, encode(tokens)
