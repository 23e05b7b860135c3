"""Between images and the latents that some decoders denoise; pure functions."""

import typing

import jax
import jax.numpy as jnp

from unclip_jax.diffusion import process
from unclip_jax.diffusion.schedule import make_schedule
from unclip_jax.interop.components import Component
from unclip_jax.models.autoencoder import Autoencoder
from unclip_jax.models.stable_decoder import StableDecoder


def encode(autoencoder: Component, params, images):
    """Images float32 (B, H, W, 3) in [-1, 1] -> latents (B, H / f, W / f, C)."""
    module = typing.cast(Autoencoder, autoencoder.module)
    return module.bind({"params": params}).encode(images)


def decode(
    autoencoder: Component,
    params,
    latents,
    known=None,
    keep=None,
    *,
    rounded: bool = True,
    tile: int | None = None,
):
    """Images of latents, with the pixels that are to be kept as they were.

    Args:
      autoencoder: the autoencoder (its params are not looked at).
      params: its parameters.
      latents: (B, h, w, C).
      known, keep: None, or images and their masks, as of sampling.Inpainting.
      rounded: static; see sampling.run_sampler.
      tile: static; pixels a side of tiles, None for the whole: see `by_tiles`.

    Returns:
      uint8 (B, f h, f w, 3), or float32 in [-1, 1] unless `rounded`.
    """
    module = typing.cast(Autoencoder, autoencoder.module)
    decode_part = module.bind({"params": params}).decode
    if tile is None:
        images = decode_part(latents)
    else:
        images = by_tiles(decode_part, latents, tile // module.factor, module.factor)
    if known is not None and keep is not None:
        images = jnp.where(keep > 0, known, images)
    return process.to_uint8(images) if rounded else images.clip(-1, 1)


def by_tiles(function, latents, tile: int, factor: int):
    """function(latents), one tile after another, so that memory holds one at a time.

    Tiles overlap by a quarter, in which one fades into the other; those at the edges
    move in, so that all have one size. Norms and attention see a tile and no more:
    images are not quite those of a whole.

    Args:
      function: (B, h, w, C) -> (B, factor h, factor w, 3), of any h and w.
      latents: (B, H, W, C).
      tile: the side of a tile in latents.
      factor: the side of images over that of latents.

    Returns:
      (B, factor H, factor W, 3) float32.
    """
    b, *sides, channels = latents.shape
    if max(sides) <= tile:
        return function(latents)
    sizes = [min(tile, side) for side in sides]
    starts = [
        sorted({min(i, side - size) for i in range(0, side, size - size // 4)})
        for side, size in zip(sides, sizes, strict=True)
    ]
    fades = [_fade(factor * size, factor * (size // 4)) for size in sizes]
    weight = (fades[0][:, None] * fades[1])[..., None]  # (h, w, 1)
    shape = b, factor * sizes[0], factor * sizes[1], 3

    def add(canvas, start):
        i, j = start
        part = jax.lax.dynamic_slice(
            latents, (0, i, j, 0), (b, sizes[0], sizes[1], channels)
        )
        corner = (0, factor * i, factor * j, 0)
        drawn = function(part) * weight, jnp.broadcast_to(weight, shape)
        canvas = [
            jax.lax.dynamic_update_slice(
                whole, jax.lax.dynamic_slice(whole, corner, shape) + new, corner
            )
            for whole, new in zip(canvas, drawn, strict=True)
        ]
        return tuple(canvas), None

    empty = jnp.zeros((b, factor * sides[0], factor * sides[1], 3))
    corners = jnp.array([(i, j) for i in starts[0] for j in starts[1]])
    (total, weights), _ = jax.lax.scan(add, (empty, empty), corners)
    return total / weights


def _fade(size: int, overlap: int):
    """(size,) weights that rise over the first `overlap` and fall over the last."""
    ends = jnp.minimum(jnp.arange(size) + 1, jnp.arange(size)[::-1] + 1)
    return jnp.minimum(ends / max(overlap, 1), 1)


def shrink_mask(keep, factor: int):
    """Masks (B, H, W, 1) of the pixels that are kept -> of latents (B, h, w, 1).

    A latent is kept where all of its factor x factor pixels are.
    """
    b, h, w, _ = keep.shape
    blocks = keep.reshape(b, h // factor, factor, w // factor, factor, 1)
    return blocks.min((2, 4))


def widen_hole(keep):
    """Masks (B, h, w, 1) whose holes have grown by one latent, as Kandinsky's do.

    Six of the eight neighbors: those its inpainting decoder was trained to see.
    """
    padded = jnp.pad(keep, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)
    _, h, w, _ = keep.shape
    shifts = (0, 0), (1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1)
    moved = [padded[:, 1 + i : 1 + i + h, 1 + j : 1 + j + w] for i, j in shifts]
    return jnp.stack(moved).min(0)


def noise_embeddings(decoder: Component, params, clip_image, level, noise):
    """Raw embeddings (B, D) with the noise of a level, for a decoder that takes some.

    Conditioning augmentation, in the space that the decoder's mean and standard
    deviation give.

    Args:
      decoder: the decoder (its params are not looked at).
      params: its parameters.
      clip_image: (B, D) raw embeddings.
      level: () int32, a timestep of the process in its config's "augmentation".
      noise: (B, D) standard normal.
    """
    module = typing.cast(StableDecoder, decoder.module).bind({"params": params})
    augmentation = decoder.config["diffusion"]["augmentation"]
    sched = make_schedule(augmentation["schedule"], augmentation["num_steps"])
    levels = jnp.full(len(clip_image), level)
    z = process.q_sample(sched, module.normalize(clip_image), levels, noise)
    return module.denormalize(z)


def x0_bound(decoder: Component):
    """What the decoder's x_0 is bounded by: 1 for images; for latents, its config's."""
    if not decoder.module.is_latent:
        return 1.0
    diffusion = decoder.config["diffusion"]
    if threshold := diffusion.get("threshold"):
        quantile, most = threshold
        return process.dynamic_threshold(quantile, most=most)
    return diffusion.get("clip")


def noise_shape(
    decoder: Component, size: tuple[int, int] | None = None
) -> tuple[int, int, int]:
    """(H, W, C) of x_T; `size` is of the latents, None that of training."""
    rows, columns = size or (decoder.module.image_size, decoder.module.image_size)
    return rows, columns, decoder.module.image_channels
