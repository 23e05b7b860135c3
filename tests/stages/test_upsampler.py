"""Stage upsampler on random data."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.configs import load_complete
from tests.random_params import random_params
from unclip_jax import config as config_lib
from unclip_jax import images, models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.stages import upsampler
from unclip_jax.training.run_config import read_config

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "icons" / "upsampler.py"
TINY = {
    "low_res_size": 8,
    "channels": 8,
    "norm_groups": 4,
    "channel_mult": (1,),
    "num_res_blocks": 1,
}
INFO = {"image_size": 32, "crop_size": 16, "low_res_size": None}
RNG = np.random.default_rng(0)


def make_config(**model):
    config = load_complete(CONFIG)
    config.model.update({**TINY, **model})
    return config


def make_stage(config=None, **info):
    config = read_config(config or make_config())
    return stages.make_stage(config, DataSpec(**{**INFO, **info}))


def batch(stage, n=4):
    return {
        name: RNG.integers(0, 256, (n, *shape), dtype=dtype)
        for name, (shape, dtype) in stage.batch_spec.items()
    }


def make_params(stage):
    return random_params(jax.eval_shape(stage.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def made():
    stage = make_stage()
    return stage, make_params(stage)


@pytest.mark.slow
def test_gradient_steps_reduce_the_loss(made):
    stage, params = made
    data = batch(stage)
    assert stage.batch_spec == {"image": ((16, 16, 3), "uint8")}

    @jax.jit
    def step(params):
        def loss(p):
            return stage.loss(p, jax.random.key(1), data)

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value, metrics

    values = []
    for _ in range(6):
        params, value, metrics = step(params)
        values.append(float(value))
    assert values[-1] < values[0] and value.dtype == jnp.float32
    assert set(metrics) == {"mse"}


def test_the_condition_is_the_smaller_picture_blurred_in_half_of_the_rows():
    stage = make_stage()
    data = batch(stage, 64)
    clean = stage.condition(data)
    x = data["image"].astype(np.float64) / 127.5 - 1
    expected = x.reshape(64, 4, 4, 4, 4, 3).mean((2, 4))
    np.testing.assert_allclose(clean, expected, atol=1e-6)
    seen = stage.condition(data, jax.random.key(0))
    changed = np.abs(seen - clean).max((1, 2, 3)) > 1e-3
    assert 16 < changed.sum() < 48
    blurred = upsampler.blur(clean, 3, 0.6)
    np.testing.assert_allclose(seen[changed], blurred[changed], atol=1e-6)
    np.testing.assert_array_equal(seen[~changed], clean[~changed])


@pytest.mark.parametrize("method, error", [("bicubic", (0, 1.5)), ("area", (3, 99))])
def test_conditions_are_shrunk_as_images_for_the_decoder_are(method, error):
    """Pillow's bicubic filter, up to its two roundings; means of areas are sharper."""
    assert upsampler.Options().downsample == "bicubic"
    noise = Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8))
    image = noise.resize((128, 128), Image.Resampling.BICUBIC)
    expected = images.to_square(image, 32).astype(np.float64)
    config = make_config(low_res_size=32)
    config.stage_options.downsample = method
    stage = make_stage(config, image_size=128, crop_size=128)
    condition = stage.condition({"image": np.asarray(image)[None]})
    least, most = error
    assert least < np.abs(127.5 * condition[0] + 127.5 - expected).max() < most


def test_the_blur_is_a_gaussian_of_three_pixels():
    """Weights exp(-x^2 / (2 0.6^2)): 0.1664, 0.6672, 0.1664, in both directions."""
    x = jnp.zeros((1, 7, 7, 1)).at[0, 3, 3].set(1)
    out = np.asarray(upsampler.blur(x, 3, 0.6))[0, ..., 0]
    line = np.array([0.1664, 0.6672, 0.1664])
    np.testing.assert_allclose(out[2:5, 2:5], np.outer(line, line), atol=1e-4)
    assert np.abs(out).sum() == pytest.approx(1, abs=1e-5)
    ones = jnp.ones((1, 4, 4, 2))
    np.testing.assert_allclose(upsampler.blur(ones, 3, 0.6), ones, atol=1e-6)


def test_degraded_pictures_come_from_the_data():
    config = make_config()
    config.stage_options.blur_probability = 0.0
    stage = make_stage(config, low_res_size=4)
    assert stage.batch_spec["low_res"] == ((4, 4, 3), "uint8")
    data = batch(stage)
    expected = data["low_res"] / 127.5 - 1
    seen = stage.condition(data, jax.random.key(0))
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    loss, _ = jax.eval_shape(stage.loss, shapes, jax.random.key(1), data)
    assert loss.shape == ()


def test_bicubic_shrinking_keeps_constants():
    x = jnp.full((1, 16, 16, 3), 0.25)
    np.testing.assert_allclose(upsampler.shrink(x, 4, "bicubic"), 0.25, 1e-6)


def test_previews_pair_what_is_given_and_what_is_drawn(made):
    stage, params = made
    data = batch(stage, 2)
    drawn = jax.jit(stage.preview)(params, jax.random.key(1), data)
    assert drawn.shape == (4, 16, 16, 3) and drawn.dtype == jnp.uint8
    given = np.asarray(drawn[0::2], np.float64)
    assert (given[:, 0] == given[:, 3]).all()  # rows of a large pixel
    mean = data["image"][:, :4, :4].mean((1, 2))
    assert np.abs(given[:, 0, 0] - mean).max() <= 1


@pytest.mark.slow
def test_bfloat16_and_a_learned_variance():
    config = make_config(learned_sigma=True)
    config.compute_dtype = "bfloat16"
    config.diffusion.prediction = "epsilon"
    stage = make_stage(config)
    params = make_params(stage)
    loss, metrics = jax.jit(stage.loss)(params, jax.random.key(1), batch(stage))
    assert loss.dtype == jnp.float32 and np.isfinite(loss)
    assert set(metrics) == {"mse", "vb"}


def test_the_export_rebuilds_the_model_and_names_its_resolution():
    stage = make_stage()
    plain = config_lib.to_plain(stage.export())
    assert plain["part"] == "upsampler_32"
    assert models.build("upsampler", plain["config"]["model"]) == stage.model
    assert plain["config"]["diffusion"]["sampling_steps"] == 5


@pytest.mark.parametrize(
    "info, message",
    [
        ({"crop_size": 18}, "squares of 18: the ratios"),
        ({"low_res_size": 8}, "32 pixels of 8, but the data has squares of 16 with 8"),
        ({"image_size": 36}, "36 pixels of 8"),
    ],
)
def test_data_of_another_ratio_is_refused(info, message):
    with pytest.raises(ValueError, match=message):
        make_stage(**info)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("downsample", "nearest", "'nearest': expected one of area, bicubic"),
        ("blur_kernel", 4, "blur_kernel must be odd"),
        ("blur_sigma", 0.0, "blur_sigma positive"),
    ],
)
def test_options_that_mean_nothing_are_refused(name, value, message):
    config = make_config()
    config.stage_options[name] = value
    with pytest.raises(ValueError, match=message):
        make_stage(config)
