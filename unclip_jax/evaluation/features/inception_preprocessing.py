"""How images enter the Inception network: three conventions, three other numbers.

| convention     | resize to 299 x 299                      | range                 |
|----------------|------------------------------------------|-----------------------|
| pytorch-fid    | bilinear, half-pixel centres, no blur    | 2 * (u8 / 255) - 1    |
| torch-fidelity | bilinear of TensorFlow 1, no half pixels | (u8 - 128) / 128      |
| clean          | bicubic of Pillow, antialiased, clipped  | (x - 128) / 128       |

Every one of them is separable and linear, so it is a matrix for rows and one for
columns, made on the host, and two matrix products on the device.  Sources: pytorch-fid
0.3.0; torch-fidelity 0.4.0; clean-fid 0.1.35 (Parmar et al. 2022) and Pillow's
Resample.c.  Compared with the programs themselves in tests/parity.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.models.inception import SIZE

BICUBIC_A = -0.5  # Pillow's; others use -0.75


def half_pixel_bilinear(size: int, out: int) -> np.ndarray:
    """torch's interpolate(mode="bilinear", align_corners=False): (out, size).

    Positions are computed in float32, as there.
    """
    scale = np.float32(size) / np.float32(out)
    centre = (np.arange(out, dtype=np.float32) + np.float32(0.5)) * scale
    return _two_taps(np.maximum(centre - np.float32(0.5), np.float32(0)), size)


def tensorflow1_bilinear(size: int, out: int) -> np.ndarray:
    """resize_bilinear of TensorFlow 1, align_corners=False: (out, size), float32."""
    scale = np.float32(size / out)
    return _two_taps(np.arange(out, dtype=np.float32) * scale, size)


def pillow_bicubic(size: int, out: int) -> np.ndarray:
    """Pillow's antialiased bicubic resize: (out, size) float64."""
    scale = size / out
    stretch = max(scale, 1.0)  # shrinking widens the kernel: no aliasing
    support = 2.0 * stretch
    matrix = np.zeros((out, size))
    for i in range(out):
        centre = (i + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), size)
        taps = np.arange(first, last)
        weights = _cubic((taps - centre + 0.5) / stretch)
        matrix[i, first:last] = weights / weights.sum()
    return matrix


def _two_taps(position, size):
    """Rows that mix the two samples around each float32 position."""
    low = np.minimum(position.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    part = (position - low.astype(np.float32)).astype(np.float64)
    matrix = np.zeros((len(position), size))
    rows = np.arange(len(position))
    matrix[rows, low] += 1.0 - part
    matrix[rows, high] += part
    return matrix


def _cubic(x):
    a, x = BICUBIC_A, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@dataclasses.dataclass(frozen=True)
class Convention:
    """One row of the table.

    Attributes:
      resize: (size, out) -> matrix (out, size).
      normalise: float32 0 to 255 -> the network's range.
    """

    resize: Callable[[int, int], np.ndarray]
    normalise: Callable[[jax.Array], jax.Array]

    def __call__(self, images, out: int = SIZE):
        """uint8 (N, H, W, 3) -> float32 (N, out, out, 3) for the network."""
        rows = jnp.asarray(self.resize(images.shape[1], out), jnp.float32)
        columns = jnp.asarray(self.resize(images.shape[2], out), jnp.float32)
        x = images.astype(jnp.float32)
        highest = jax.lax.Precision.HIGHEST  # TPUs would round pixels to bfloat16
        x = jnp.einsum("pw,nhwc->nhpc", columns, x, precision=highest)
        x = jnp.einsum("oh,nhpc->nopc", rows, x, precision=highest)
        return self.normalise(x)


CONVENTIONS = {
    "pytorch-fid": Convention(half_pixel_bilinear, lambda x: 2.0 * (x / 255.0) - 1.0),
    "torch-fidelity": Convention(tensorflow1_bilinear, lambda x: (x - 128.0) / 128.0),
    "clean": Convention(
        pillow_bicubic, lambda x: (jnp.clip(x, 0.0, 255.0) - 128.0) / 128.0
    ),
}


def find(name: str) -> Convention:
    """The convention of that name.

    Raises:
      UsageError: there is none.
    """
    if name not in CONVENTIONS:
        raise UsageError(
            f"convention {name!r}: expected one of {', '.join(CONVENTIONS)}"
        )
    return CONVENTIONS[name]
