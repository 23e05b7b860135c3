"""What callers may hand to UnCLIP; each check says what was wrong with it."""

import math
import os
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unclip_jax.diffusion import samplers, schedule
from unclip_jax.diffusion.process import from_uint8
from unclip_jax.errors import UsageError
from unclip_jax.images import read_image, to_rgb

PRIORS = {"diffusion": "prior", "autoregressive": "ar_prior"}  # name -> part
FLOAT32_MAX = float(np.finfo(np.float32).max)


def encoder(name: str | None, own: str | None) -> None:
    """Refuses embeddings of another encoder than the decoder's; None: not known."""
    if name is not None and name != own:
        raise UsageError(
            f"the embeddings are of the encoder {name!r}, the decoder draws those of "
            f"the CLIP {own!r}: train the prior on embeddings that this CLIP made"
        )


def prompts(values: str | Sequence[str]) -> list[str]:
    """The prompts as a list; a single string is a list of one."""
    values = [values] if isinstance(values, str) else list(values or ())
    if not values:
        raise UsageError("no prompts: give at least one")
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise UsageError(f"prompt {i} must be a string, got {value!r}")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # bytes of another encoding, half a pair
            raise UsageError(f"prompt {i} is not valid Unicode: {error}") from None
    return values


def one_each(values: str | Sequence[str], count: int) -> list[str]:
    """The prompts as a list of `count`; one alone is for all."""
    values = prompts(values)
    values = values * count if len(values) == 1 else values
    same_length("prompts", values, "images", range(count))
    return values


def images(values, size: int | tuple[int, int], what: str) -> np.ndarray:
    """uint8 (N, rows, columns, 3) with N > 0; a single picture is a batch of one.

    `size` is (rows, columns), or the side of squares.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    try:
        values = np.asarray(values)
    except ValueError as error:
        raise UsageError(f"the images differ in size: {error}") from error
    if values.size == 0:
        raise UsageError("no images: give at least one")
    if values.dtype != np.uint8:
        raise UsageError(
            f"images must be uint8 (0 to 255), got {values.dtype}; convert floats in "
            "[0, 1] with (255 * x).round().astype(np.uint8)"
        )
    if values.ndim == 3:
        values = values[None]
    if values.shape[1:] != (rows, columns, 3):
        raise UsageError(
            f"{what} takes images (N, {rows}, {columns}, 3), got {values.shape}; "
            f"unclip_jax.images.fit(image, ({rows}, {columns})) scales and crops one"
        )
    return values


def image_list(values) -> list[np.ndarray]:
    """uint8 (H, W, 3) each, of any sizes, at least one; one alone is a list of one.

    Images of Pillow's and names of files do as well.
    """
    is_array = isinstance(values, np.ndarray) and values.ndim == 3
    if is_array or isinstance(values, str | os.PathLike | Image.Image):
        values = [values]
    values = [_pixels(value) for value in values]
    if not values:
        raise UsageError("no images: give at least one")
    for i, value in enumerate(values):
        shaped = value.ndim == 3 and value.shape[2] == 3 and value.size
        if value.dtype != np.uint8 or not shaped:
            raise UsageError(
                f"image {i} must be uint8 (H, W, 3), an image of Pillow's or the name "
                f"of a file, got {value.dtype} {value.shape}"
            )
    return values


def _pixels(image) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        image = to_rgb(image)
    return np.asarray(image)


def noise(values, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of the shape (N, S, S, 3), finite."""
    values = np.asarray(values, np.float32)
    if values.shape != shape or not np.isfinite(values).all():
        raise UsageError(f"noise must be finite and {shape}, got {values.shape}")
    return values


def known(
    pictures, masks, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures in [-1, 1] and float32 masks (N, S, S, 1) of what is kept of them."""
    pictures, masks = np.asarray(pictures), np.asarray(masks)
    if pictures.dtype != np.uint8 or pictures.shape != (*shape, 3):
        raise UsageError(
            f"pictures to keep must be uint8 {(*shape, 3)}, got {pictures.dtype} "
            f"{pictures.shape}"
        )
    if masks.dtype != bool or masks.shape != shape:
        raise UsageError(f"masks must be bool {shape}, got {masks.dtype} {masks.shape}")
    return from_uint8(pictures), masks[..., None].astype(np.float32)


def hint(
    values, takes_one: bool, origin: str, sides: tuple[int, int], count: int
) -> np.ndarray | None:
    """Hints in [-1, 1], (count, *sides, 3); None of a decoder that sees none.

    Raises UsageError for a hint too many, none where `takes_one`, or another size.
    """
    if not takes_one and values is None:
        return None
    if not takes_one:
        raise UsageError(
            f"the decoder of {origin} sees no hint: leave it out, or load one that "
            "does, such as kandinsky-2-2-controlnet-depth"
        )
    if values is None:
        raise UsageError(
            f"the decoder of {origin} draws after a hint, such as a depth map: give "
            "hint=images"
        )
    values = images(values, sides, "the decoder")
    same_length("hints", values, "images", range(count))
    return from_uint8(values)


def embeddings(values, dim: int) -> np.ndarray:
    """float32 (N, dim), N > 0, finite."""
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or not len(values) or values.shape[1] != dim:
        raise UsageError(f"embeddings must be (N, {dim}), got {values.shape}")
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        raise UsageError(f"embeddings hold NaN or infinity in rows {bad[:5].tolist()}")
    return values


def number(
    name: str, value: float, minimum: float = -math.inf, maximum: float = math.inf
) -> float:
    """A float in [minimum, maximum], finite in float32 as well."""
    is_number = isinstance(value, int | float | np.number)
    inside = is_number and minimum <= value <= maximum
    inside = inside and abs(value) <= FLOAT32_MAX
    if not inside:
        least = "" if minimum == -math.inf else f" of at least {minimum:g}"
        most = "" if maximum == math.inf else f" and at most {maximum:g}"
        raise UsageError(f"{name} must be a finite number{least}{most}, got {value!r}")
    return float(value)


def fraction(name: str, value: float) -> float:
    """A float in [0, 1]."""
    value = number(name, value, 0)
    if value > 1:
        raise UsageError(f"{name} must be between 0 and 1, got {value!r}")
    return value


def integer(name: str, value: int, minimum: int, maximum: int) -> int:
    """An int in [minimum, maximum]."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or not minimum <= value <= maximum:
        raise UsageError(
            f"{name} must be a whole number from {minimum} to {maximum}, got {value!r}"
        )
    return int(value)


def steps(name: str, value: int | str, most: int) -> int | str:
    """A number of sampling steps, or a respacing of diffusion.schedule.respace."""
    if not isinstance(value, str):
        return integer(name, value, 1, most)
    count = schedule.count_of(value)
    if count is not None:
        return integer(name, count, 1, most)
    try:
        schedule.respace(most, value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    return value


def indices(values: Sequence[int], count: int) -> np.ndarray:
    """(count,) int32 numbers of pictures."""
    array = np.asarray(values)
    whole = np.issubdtype(array.dtype, np.integer) and array.shape == (count,)
    if not whole or array.min() < 0 or array.max() >= 2**31:
        raise UsageError(
            f"indices must be {count} whole numbers from 0 to {2**31 - 1}, one per "
            f"picture, got {array.tolist()}"
        )
    return array.astype(np.int32)


def sampler(name: str, value: str) -> str:
    """The name of a sampler."""
    if value not in list(samplers.SAMPLERS):  # a list need not be hashable
        names = ", ".join(sorted(samplers.SAMPLERS))
        raise UsageError(f"{name} {value!r}: expected one of {names}")
    return value


def prior(value: str, parts: Container[str]) -> str:
    """The part that `value`, a name in PRIORS or "auto", draws embeddings with."""
    if value == "auto":  # the paper's choice, unless only the other is there
        only_codes = "ar_prior" in parts and "prior" not in parts
        return "ar_prior" if only_codes else "prior"
    if value not in PRIORS:
        names = ", ".join(["auto", *PRIORS])
        raise UsageError(f"prior {value!r}: expected one of {names}")
    return PRIORS[value]


def same_length(name: str, values, other_name: str, others) -> None:
    """Raises UsageError unless there are as many of the one as of the other."""
    if len(values) != len(others):
        raise UsageError(f"{len(values)} {name} for {len(others)} {other_name}")


def starts_from_embeddings(value: str, parts: Container[str]) -> None:
    """Raises UsageError for a prior that draws codes: it adds no noise."""
    if prior(value, parts) == "ar_prior":
        raise UsageError(
            "the autoregressive prior draws codes one by one and cannot start from an "
            "embedding: take the diffusion prior"
        )


def negative_prompt(options: Any, parts: Container[str]) -> None:
    """Raises UsageError for a negative prompt that has no meaning.

    `options` are PriorOptions.
    """
    if options.negative_prompt is None:
        return
    prompts(options.negative_prompt)
    if prior(options.prior, parts) == "ar_prior":
        raise UsageError(
            "negative_prompt: the autoregressive prior has no guidance by captions; "
            "take the diffusion prior"
        )
