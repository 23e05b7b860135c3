"""The autoencoder's loss, and what becomes of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_params
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.evaluation.metrics.reconstruction import reconstruction
from unclip_jax.stages import StageConfig

MODEL = {"channels": 4, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 2}
MODEL["latent_scale"] = 0.5


def make_stage(side=8, diffusion=None, **changes):
    model = {**MODEL, **{k: v for k, v in changes.items() if k != "kl_weight"}}
    options = {k: v for k, v in changes.items() if k == "kl_weight"}
    config = StageConfig(
        stage="autoencoder",
        data={},
        model=model,
        diffusion=diffusion or {},
        stage_options=options,
    )
    return stages.make_stage(config, DataSpec(image_size=side))


@pytest.fixture(scope="module")
def made():
    stage = make_stage(kl_weight=0.25)
    params = random_params(jax.eval_shape(stage.init, jax.random.key(0)))
    shape = 3, 8, 8, 3
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return stage, params, {"image": images}


@pytest.mark.slow
def test_the_loss_is_absolute_error_and_divergence(made):
    """The divergence against torch's, of the Gaussians before they are scaled."""
    torch = pytest.importorskip("torch")
    stage, params, batch = made
    rng = jax.random.key(2)
    value, metrics = jax.jit(stage.loss)(params, rng, batch)
    images = batch["image"].astype(np.float32) / 127.5 - 1
    apply = jax.jit(stage.model.apply, static_argnames="method")
    mean, std = apply({"params": params}, images, method="encode_moments")
    latents = mean + std * jax.random.normal(rng, mean.shape)
    decoded = apply({"params": params}, latents, method="decode")
    normal = torch.distributions.Normal
    posterior = normal(*(torch.tensor(np.asarray(a) / 0.5) for a in (mean, std)))
    kl = torch.distributions.kl_divergence(posterior, normal(0.0, 1.0)).mean()
    np.testing.assert_allclose(metrics["l1"], np.abs(decoded - images).mean(), 1e-5)
    np.testing.assert_allclose(metrics["kl"], kl, 1e-5)
    np.testing.assert_allclose(value, metrics["l1"] + 0.25 * metrics["kl"], 1e-6)
    np.testing.assert_allclose(metrics["latent_std"], np.std(mean), 1e-5)


@pytest.mark.slow
def test_previews_are_pairs_of_images(made):
    stage, params, batch = made
    drawn = jax.jit(stage.preview)(params, jax.random.key(1), batch)
    assert drawn.shape == (6, 8, 8, 3) and drawn.dtype == jnp.uint8
    np.testing.assert_array_equal(drawn[0::2], batch["image"])


@pytest.mark.slow
def test_the_errors_of_images_against_torchmetrics(made):
    metrics = pytest.importorskip("torchmetrics.functional.image")
    torch = pytest.importorskip("torch")
    stage, params, batch = made
    errors = jax.jit(stage.embed)(params, jax.random.key(1), batch)
    found = reconstruction(errors["absolute_error"], errors["squared_error"])
    drawn = jax.jit(stage.preview)(params, jax.random.key(1), batch)[1::2]
    true, drawn = (
        torch.from_numpy(np.asarray(a, np.float32)) for a in (batch["image"], drawn)
    )
    psnr = metrics.peak_signal_noise_ratio(
        drawn, true, data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean"
    )
    np.testing.assert_allclose(found["psnr"], psnr, rtol=1e-5)
    l1 = (drawn - true).abs().mean() / 127.5
    np.testing.assert_allclose(found["l1"], l1, rtol=1e-5)
    assert reconstruction(np.zeros((2, 1)), np.zeros((2, 1)))["psnr"] == 100


def test_exports_rebuild_the_model():
    stage = make_stage()
    exported = stage.export()
    assert exported["part"] == "autoencoder"
    assert models.build("autoencoder", exported["config"]["model"]) == stage.model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 9}, "images of 9 pixels are no multiple of"),
        ({"num_codes": 8}, "trains variational ones"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0"),
        ({"diffusion": {"num_steps": 9}}, "takes none"),
        ({"image_size": 16}, "image_size is 16, but the data has 8"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_stage(**changes)
