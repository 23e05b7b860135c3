"""Spherical interpolation and directions in CLIP's space; float64 on the host."""

import numpy as np

from unclip_jax.errors import UsageError

PARALLEL = 1e-6  # radians below which the arc is a straight line


def slerp(a: np.ndarray, b: np.ndarray, t: float | np.ndarray) -> np.ndarray:
    """From a at t = 0 to b at t = 1 along the arc between them.

    The direction turns at constant speed in the plane of both; the length goes from
    |a| to |b| linearly, so that vectors of one length keep it (paper, section 3.2).

    Args:
      a, b: (..., D); leading axes broadcast. Pictures of noise are flattened first.
      t: a number, or an array that broadcasts with the leading axes.

    Returns:
      (..., D) float32.

    Raises:
      UsageError: zero vectors; exactly opposite ones, which have no shortest arc.
    """
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    t = np.asarray(t, np.float64)[..., None]
    length_a, length_b = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    if not (length_a > 0).all() or not (length_b > 0).all():
        raise UsageError("slerp of a zero vector: it has no direction")
    u, v = a / length_a, b / length_b
    # Kahan's angle: exact for nearly equal and nearly opposite vectors, unlike arccos
    far, near = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (u - v, u + v))
    angle = 2 * np.arctan2(far, near)
    if (np.pi - angle < PARALLEL).any():
        raise UsageError("slerp of opposite vectors: no arc between them is shortest")
    straight = angle < PARALLEL
    sine = np.where(straight, 1, np.sin(angle))
    weight_a = np.where(straight, 1 - t, np.sin((1 - t) * angle) / sine)
    weight_b = np.where(straight, t, np.sin(t * angle) / sine)
    length = (1 - t) * length_a + t * length_b
    return (length * (weight_a * u + weight_b * v)).astype(np.float32)


def rotate(z: np.ndarray, direction: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """slerp from z towards a direction, without a change of length.

    Paper, section 3.3: slerp(z_i, z_d, theta) with z_d scaled to the length of z_i.

    Args:
      z, direction, theta: as a, b, t of `slerp`.
    """
    length = np.linalg.norm(z, axis=-1, keepdims=True)
    size = np.linalg.norm(direction, axis=-1, keepdims=True)
    if not (size > 1e-6 * length).all():
        raise UsageError("the two captions have the same embedding: no direction")
    return slerp(z, direction / size * length, theta)
