"""Interpolation on spheres."""

import numpy as np
import pytest

from unclip_jax.generation.slerp import rotate, slerp


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(50, 1, 64)), rng.normal(size=(50, 1, 64))


def angle(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return 2 * np.arctan2(
        np.linalg.norm(a / _norm(a) - b / _norm(b), axis=-1),
        np.linalg.norm(a / _norm(a) + b / _norm(b), axis=-1),
    )


def _norm(x):
    return np.linalg.norm(x, axis=-1, keepdims=True)


def test_constant_speed_along_the_shortest_arc(pairs):
    a, b = pairs
    t = np.linspace(0, 1, 9)
    path = slerp(a, b, t)  # (50, 9, 64)
    assert path.shape == (50, 9, 64) and path.dtype == np.float32
    whole = angle(a, b)
    np.testing.assert_allclose(angle(path, a), t * whole, atol=2e-6)
    np.testing.assert_allclose(angle(path, b), (1 - t) * whole, atol=2e-6)


def test_lengths_and_end_points(pairs):
    a, b = pairs
    a, b = a * 28.5 / _norm(a), b * 28.5 / _norm(b)
    path = slerp(a, b, np.linspace(0, 1, 9))
    np.testing.assert_allclose(_norm(path), 28.5, rtol=1e-6)
    np.testing.assert_allclose(path[:, 0], a[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(path[:, -1], b[:, 0], rtol=1e-5, atol=1e-5)
    longer = slerp(a, 3 * b, 0.5)
    np.testing.assert_allclose(_norm(longer), 2 * 28.5, rtol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 0.3), slerp(b, a, 0.7), atol=1e-5)


def test_a_known_midpoint():
    """At cosine 0.71 a slerp without the sum in its dot product gives norm 37.2."""
    a, b = np.zeros(768), np.zeros(768)
    a[0] = 28.5
    b[:2] = 28.5 * np.array([0.71, np.sqrt(1 - 0.71**2)])
    middle = slerp(a, b, 0.5)
    np.testing.assert_allclose(middle, (a + b) / _norm(a + b) * 28.5, atol=1e-4)


def test_nearly_parallel_vectors():
    a = np.ones(8)
    b = a + 1e-9 * np.arange(8)
    np.testing.assert_allclose(slerp(a, b, 0.5), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, a, 0.5), a, atol=1e-6)
    b = a + 1e-4 * np.arange(8)  # on the arc, where arccos has lost its digits
    np.testing.assert_allclose(slerp(a, b, 0.5), (a + b) / 2, atol=1e-6)


def test_impossible_arcs():
    with pytest.raises(ValueError, match="zero vector"):
        slerp(np.zeros(4), np.ones(4), 0.5)
    with pytest.raises(ValueError, match="opposite"):
        slerp(np.ones(4), -np.ones(4), 0.5)


def test_rotation_keeps_the_length(pairs):
    z, direction = pairs
    turned = rotate(z, 0.01 * direction, np.array([0.0, 0.25, 0.5]))
    np.testing.assert_allclose(_norm(turned), np.repeat(_norm(z), 3, 1), rtol=1e-6)
    np.testing.assert_allclose(turned[:, 0], z[:, 0], rtol=1e-5, atol=1e-5)
    half = angle(z, direction) / 2
    np.testing.assert_allclose(angle(turned[:, 2:], direction), half, atol=2e-6)
    with pytest.raises(ValueError, match="same embedding"):
        rotate(z, 0 * direction, 0.5)
