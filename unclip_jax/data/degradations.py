"""Crops for the upsamplers, and the degraded images that 256 -> 1024 learns from.

    config.data.degradation = dict(kind="crop", crop=64)
    config.data.degradation = dict(kind="bsr", crop=256, scale=4)

"crop" gives batches of random squares of side `crop` in place of whole images, so that
no more than is needed leaves the host. "bsr" adds `low_res`, the square made smaller by
`scale` and degraded as in BSRGAN (Zhang et al. 2021) in the lighter form of latent
diffusion (Rombach et al. 2022), which is what the paper trains 256 -> 1024 on.

Everything is drawn from (seed, step, row of the global batch): the same in every feed
and for any number of processes.
"""

import dataclasses
import functools
import io

import numpy as np
from PIL import Image

from unclip_jax import config as config_lib
from unclip_jax.data import order
from unclip_jax.errors import UsageError

KINDS = ("crop", "bsr")
_STREAM = 0xB5  # keeps these keys apart from those of the order


def make_degradation(config, image_size: int) -> "Degradation | None":
    """The degradation of config.data.degradation; None where it is not given.

    Raises UsageError for options that do not fit each other or images of `image_size`.
    """
    if not config:
        return None
    made = config_lib.build(Degradation, config, "config.data.degradation")
    where = "config.data.degradation"
    if made.kind not in KINDS:
        raise UsageError(f"{where}.kind {made.kind!r}: expected one of {KINDS}")
    if not 1 <= made.crop <= image_size:
        raise UsageError(
            f"{where}.crop {made.crop}: expected 1 to {image_size}, the images' side"
        )
    if made.kind == "bsr" and (made.scale < 2 or made.crop % (2 * made.scale)):
        raise UsageError(
            f"{where}: crop {made.crop} must be a multiple of twice the scale "
            f"{made.scale}, at least 2"
        )
    return made


@dataclasses.dataclass(frozen=True)
class Degradation:
    """Turns batches of whole images into what an upsampler trains on."""

    kind: str
    crop: int
    scale: int = 4

    @property
    def low_res_size(self) -> int | None:
        """Side of `low_res`, or None when there is none."""
        return self.crop // self.scale if self.kind == "bsr" else None

    def shapes(self, shapes):
        """{name: (shape, dtype)} of an example, before -> after."""
        made = {**shapes, "image": ((self.crop, self.crop, 3), "uint8")}
        if self.kind == "bsr":
            side = self.low_res_size
            made["low_res"] = ((side, side, 3), "uint8")
        return made

    def inputs(self, names) -> list[str]:
        """What has to be read for batches of `names`."""
        return list(dict.fromkeys("image" if n == "low_res" else n for n in names))

    def __call__(self, batch, names, seed: int, step: int, rows):
        """The named arrays of a batch of whole images.

        Args:
          batch: {name: (B, ...)}, with "image" uint8 (B, H, W, 3) if it is needed.
          names: of the result.
          seed, step: of the batch.
          rows: (B,) numbers of the rows in the global batch.
        """
        if "image" not in batch:
            return batch
        crops, smaller = [], []
        for row, image in zip(rows, batch["image"], strict=True):
            key = order.make_key(seed, _STREAM, step, int(row))
            rng = np.random.default_rng(int(key))
            crops.append(random_crop(image, self.crop, rng))
            if "low_res" in names:
                smaller.append(bsr(crops[-1], self.scale, rng))
        made = {**batch, "image": np.stack(crops)}
        if smaller:
            made["low_res"] = np.stack(smaller)
        return {name: made[name] for name in names}


def random_crop(image, side: int, rng):
    """A (side, side, C) square of (H, W, C), anywhere with equal probability."""
    top, left = (rng.integers(0, n - side + 1) for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def bsr(image, scale: int, rng):
    """A small, degraded copy of an image.

    25% are halved first; then, in random order: a blur, a first down-sampling, the rest
    of it, noise and (90%) JPEG; JPEG again at the end.

    Args:
      image: uint8 (H, W, 3), sides a multiple of 2 * scale.
      scale: how many times smaller the result is.
      rng: np.random.Generator.

    Returns:
      uint8 (H / scale, W / scale, 3).
    """
    target = image.shape[0] // scale, image.shape[1] // scale
    x = image.astype(np.float32) / 255
    if scale == 4 and rng.random() < 0.25:
        half = image.shape[0] // 2, image.shape[1] // 2
        smooth = "cubic_antialiased"
        x = resize(x, half, _any_kernel(rng) if rng.random() < 0.5 else smooth)
        scale = 2
    steps = list(rng.permutation(["blur", "shrink", "fit", "noise", "jpeg"]))
    i, j = steps.index("shrink"), steps.index("fit")
    if i > j:
        steps[i], steps[j] = steps[j], steps[i]
    for step in steps:
        if step == "blur":
            x = blur(x, random_kernel(scale, rng))
        elif step == "shrink":
            x = _shrink(x, scale, rng)
        elif step == "fit":
            x = resize(x, target, _any_kernel(rng))
        elif step == "noise":
            x = add_noise(x, rng)
        elif rng.random() < 0.9:
            x = jpeg(x, rng)
        x = x.clip(0, 1)
    return _to_uint8(jpeg(x, rng))


def resize(x, size: tuple[int, int], kernel: str):
    """(H, W, C) float32 -> (*size, C).

    `kernel` is "linear" or "cubic" (four taps or sixteen whatever the size, so that
    shrinking aliases, as OpenCV's do), "area" or "cubic_antialiased".
    """
    rows = _resize_matrix(x.shape[0], size[0], kernel)
    columns = _resize_matrix(x.shape[1], size[1], kernel)
    return _separable(x, rows, columns)


def blur(x, kernel):
    """Filters (H, W, C) with an odd-sided (k, k) kernel; edges are mirrored."""
    r = kernel.shape[0] // 2
    h, w = x.shape[:2]
    padded = np.pad(x, ((r, r), (r, r), (0, 0)), "reflect")
    out = np.zeros_like(x)
    for i, j in zip(*np.nonzero(kernel > 1e-5 * kernel.max()), strict=True):
        out += kernel[i, j] * padded[i : i + h, j : j + w]
    return out


def random_kernel(scale: int, rng):
    """A Gaussian, of any orientation or isotropic with equal probability; float32."""
    if rng.random() < 0.5:
        variances = (4 + scale) / 4 * rng.random(2)
        return gaussian(2 * rng.integers(2, 7) + 1, variances, np.pi * rng.random())
    sigma = (2 + 0.2 * scale) / 4 * rng.random()
    return gaussian(2 * rng.integers(2, 4) + 1, (sigma**2, sigma**2))


def gaussian(side: int, variances, angle: float = 0.0):
    """(side, side) float32 Gaussian of sum 1 with the given variances on its axes."""
    offsets = np.arange(side) - (side - 1) / 2
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    first, second = np.maximum(variances, 1e-3)  # 0 would divide by zero
    k = np.exp(-0.5 * (along**2 / first + across**2 / second))
    return (k / k.sum()).astype(np.float32)


def add_noise(x, rng):
    """Gaussian noise of level 1 or 2 of 255: per channel, grey, or correlated."""
    level = rng.integers(1, 3) / 255
    kind, shape = rng.random(), x.shape
    if kind > 0.6:
        noise = level * rng.standard_normal(shape, np.float32)
    elif kind < 0.4:
        noise = level * rng.standard_normal((*shape[:2], 1), np.float32)
    else:
        axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        mix = 2 / 255 * np.sqrt(rng.random(3))[:, None] * axes
        noise = rng.standard_normal(shape, np.float32) @ mix.astype(np.float32)
    return x + noise.astype(np.float32)


def jpeg(x, rng):
    """Compresses and decompresses at a quality of 80 to 95."""
    file = io.BytesIO()
    Image.fromarray(_to_uint8(x)).save(file, "JPEG", quality=int(rng.integers(80, 96)))
    return np.asarray(Image.open(file), np.float32) / 255


def _shrink(x, scale, rng):
    """A random resize by 1 to 2 * scale (80%), or a strided Gaussian by `scale`."""
    h, w = x.shape[:2]
    if rng.random() < 0.8:
        by = rng.uniform(1, 2 * scale)
        return resize(x, (max(1, int(h / by)), max(1, int(w / by))), _any_kernel(rng))
    sigma = rng.uniform(0.1, 0.6 * scale)
    rows, columns = (_strided_gaussian(n, scale, sigma) for n in (h, w))
    return _separable(x, rows, columns)


def _any_kernel(rng) -> str:
    return str(rng.choice(["linear", "cubic", "area"]))


def _separable(x, rows, columns):
    """rows (h, H) and columns (w, W) applied to (H, W, C) -> (h, w, C)."""
    x = np.tensordot(rows, x, 1)  # (h, W, C)
    return np.ascontiguousarray(np.tensordot(columns, x, (1, 1)).transpose(1, 0, 2))


@functools.lru_cache(maxsize=256)
def _resize_matrix(n: int, m: int, kernel: str):
    """(m, n) float32 weights, rows of sum 1; pixel centres at half integers."""
    ratio = n / m
    if kernel == "area" and ratio > 1:
        left = ratio * np.arange(m)[:, None]
        pixel = np.arange(n)
        overlap = np.minimum(left + ratio, pixel + 1) - np.maximum(left, pixel)
        weights = overlap.clip(0)
    else:
        centre = (ratio * (np.arange(m) + 0.5) - 0.5).clip(0, n - 1)
        stretch = max(1.0, ratio) if kernel == "cubic_antialiased" else 1.0
        distance = np.abs(np.arange(n) - centre[:, None]) / stretch
        if kernel in ("linear", "area"):
            weights = (1 - distance).clip(0)
        else:
            weights = _cubic(distance, -0.5 if stretch > 1 else -0.75)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _cubic(d, a: float):
    """Keys' cubic kernel at distances d >= 0."""
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d < 1, near, np.where(d < 2, far, 0))


def _strided_gaussian(n: int, stride: int, sigma: float):
    """(n / stride, n) float32: Gaussians of at most 25 taps centred on each block."""
    centre = stride * np.arange(n // stride) + (stride - 1) / 2
    distance = np.abs(np.arange(n) - centre[:, None])
    # the nearest pixel's exponent is taken out, lest all of them underflow
    exponent = (distance**2 - distance.min(1, keepdims=True) ** 2) / (2 * sigma**2)
    weights = np.where(distance <= 12, np.exp(-exponent), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _to_uint8(x):
    return (x * 255).round().clip(0, 255).astype(np.uint8)
