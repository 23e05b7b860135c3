"""Classifier-free guidance, its interval and its rescaling."""

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.guidance import autoguidance, classifier_free

C = jnp.array([[2.0, 5.0], [3.0, -1.0]])
X = jnp.array([[0.1, 0.2], [0.3, 0.4]])
T = jnp.array([10, 500])


def model(x, t, c, drop):
    """mean: c + x, or -1 without condition; then ten times that for the variance."""
    out = jnp.where(drop[:, None], -1.0, c + x)
    return jnp.concatenate([out, out * 10], axis=-1)


def test_guidance_extrapolates_from_the_unconditional_output():
    out = classifier_free(model, C, 4.0)(X, T)
    np.testing.assert_allclose(out[:, :2], -1 + 4 * (C + X + 1), rtol=1e-6)
    np.testing.assert_allclose(out[:, 2:], 10 * (C + X))  # the conditional variance


@pytest.mark.parametrize("one", [1, 1.0, np.float32(1), jnp.float32(1)])
def test_a_scale_of_one_is_the_conditional_model_exactly(one):
    out = classifier_free(model, C, one)(X, T)
    np.testing.assert_array_equal(out, model(X, T, C, jnp.zeros(2, bool)))


def test_a_scale_of_one_on_the_host_calls_the_model_once_per_sample():
    sizes = []

    def counting(x, t, c, drop):
        sizes.append(len(x))
        return model(x, t, c, drop)

    for scale in (1.0, 2.0):
        classifier_free(counting, C, scale)(X, T)
    assert sizes == [2, 4]


def test_outside_the_interval_the_model_is_the_conditional_one():
    out = classifier_free(model, C, 4.0, interval=(100, 500))(X, T)
    np.testing.assert_array_equal(out[0, :2], (C + X)[0])
    np.testing.assert_allclose(out[1, :2], -1 + 4 * (C + X + 1)[1], rtol=1e-6)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaling_brings_back_the_spread_of_each_sample(phi):
    """Lin et al. 2023, equations 15 and 16, in float64."""
    out = classifier_free(model, C, 4.0, rescale=phi)(X, T)[:, :2]
    cond = np.asarray(C + X, np.float64)
    guided = -1 + 4 * (cond + 1)
    ratio = cond.std(1, keepdims=True) / guided.std(1, keepdims=True)
    np.testing.assert_allclose(
        out, phi * guided * ratio + (1 - phi) * guided, rtol=1e-5
    )


def test_every_sample_may_have_its_own_scale():
    out = classifier_free(model, C, jnp.array([1.0, 3.0]))(X, T)[:, :2]
    each = [classifier_free(model, C, s)(X, T)[i, :2] for i, s in enumerate((1, 3))]
    np.testing.assert_allclose(out, np.stack(each), rtol=1e-6)


def test_the_type_of_the_model_is_kept():
    half = classifier_free(model, C.astype(jnp.bfloat16), jnp.float32(3), rescale=0.5)
    assert half(X.astype(jnp.bfloat16), T).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "options,message",
    [
        ({"scale": float("nan")}, "must be a finite number, got nan"),
        ({"scale": np.float32("inf")}, "must be a finite number, got inf"),
        ({"scale": 2, "interval": (5, 1)}, "expected 0 <= first <= last"),
        ({"scale": 2, "rescale": 1.5}, "between 0 and 1, got 1.5"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        classifier_free(model, C, **options)


def test_autoguidance_extrapolates_from_the_weaker_model():
    """Two denoisers of Gaussians, x_0 = a x: the guided factor in closed form."""
    strong, weak = 0.8, 0.5

    def denoiser(a):
        return lambda x, t, c, drop: a * x + jnp.where(drop[:, None], 0.0, c)

    models = denoiser(strong), denoiser(weak)
    out = autoguidance(*models, C, 3.0)(X, T)
    factor = weak + 3.0 * (strong - weak)
    np.testing.assert_allclose(out, factor * X + C, rtol=1e-6)  # both see C
    out = autoguidance(*models, C, jnp.float32(3.0), interval=(100, 500))(X, T)
    np.testing.assert_allclose(out[0], (strong * X + C)[0], rtol=1e-6)
    np.testing.assert_allclose(out[1], (factor * X + C)[1], rtol=1e-6)
    alone = autoguidance(models[0], None, C, 1)(X, T)  # the weaker one is not called
    np.testing.assert_array_equal(alone, strong * X + C)
