"""Latents beside embeddings: records hold what training makes on the devices."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from tests.embedding.test_runner import Pictures
from tests.latent_configs import KANDINSKY
from unclip_jax import models
from unclip_jax.data.loader import open_data
from unclip_jax.diffusion import process
from unclip_jax.embedding import runner
from unclip_jax.embedding.config import read_config
from unclip_jax.embedding.latents import LatentEncoder
from unclip_jax.interop import components, diffusers_autoencoder, native
from unclip_jax.interop.export import export
from unclip_jax.interop.frozen_autoencoder import FrozenAutoencoder
from unclip_jax.training.checkpoint import load_run
from unclip_jax.training.latents import Latents
from unclip_jax.training.loop import train
from unclip_jax.training.run_config import read_config as read_training

GAUSSIAN = {
    "channels": 8,
    "channel_mult": (1, 1),
    "norm_groups": 4,
    "latent_scale": 0.5,
}
CODES = {**GAUSSIAN, "num_codes": 16, "spatial_norm": True}


def make_autoencoder(fields, seed=0):
    shapes = components.param_shapes("autoencoder", models.build("autoencoder", fields))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda s: rng.normal(size=s.shape, scale=0.2).astype(np.float32), shapes
    )
    config = {"model": fields}
    part = components.build_component("autoencoder", config, params, {}, where="tiny")
    return FrozenAutoencoder(part, native.autoencoder_fingerprint(config, params))


def embed(folder, clip, autoencoder=None, std=False):
    encoder = autoencoder and LatentEncoder(autoencoder, std)
    runner.embed_source(Pictures(), folder, clip, encoder, shard_size=9)
    return open_data({"source": "records", "path": folder, "feed": "arrays"})


@pytest.mark.slow
@pytest.mark.parametrize("std", [True, False])
def test_records_hold_scaled_means_and_deviations(tmp_path, clip, std):
    autoencoder = make_autoencoder(GAUSSIAN)
    data = embed(tmp_path / "r", clip, autoencoder, std)
    assert data.spec.latent_shape == (4, 4, 4) and data.spec.has_latent_std == std
    assert data.spec.autoencoder_fingerprint == autoencoder.fingerprint
    names = ("image", "latents", "latent_std") if std else ("image", "latents")
    found = data.take(20, names)
    params = {"params": autoencoder.part.params}
    images = process.from_uint8(found["image"])
    encode = jax.jit(autoencoder.module.apply, static_argnames="method")
    zero, one = (
        encode(
            params, images, np.full((20, 4, 4, 4), value, np.float32), method="encode"
        )
        for value in (0, 1)
    )
    np.testing.assert_allclose(found["latents"], zero, rtol=2e-3, atol=1e-3)
    if std:
        np.testing.assert_allclose(
            found["latent_std"], one - zero, rtol=3e-3, atol=1e-3
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_half_precision_is_the_same_autoencoder(dtype, tmp_path):
    """A folder of diffusers in float16, a native export in any; not another scale."""
    autoencoder = make_autoencoder(GAUSSIAN)
    part = autoencoder.part
    native.write_part(
        tmp_path / "native", "autoencoder", part.config, part.params, {}, dtype
    )
    folders = [tmp_path / "native"]
    if dtype != "bfloat16":
        diffusers_autoencoder.save_autoencoder(
            part.config, part.params, tmp_path / "vae", dtype
        )
        folders.append(tmp_path / "vae")
    for folder in folders:
        found = FrozenAutoencoder.load(folder)
        assert found.fingerprint == autoencoder.fingerprint
    other = make_autoencoder({**GAUSSIAN, "latent_scale": 0.25})
    assert other.fingerprint != autoencoder.fingerprint
    assert make_autoencoder(GAUSSIAN, 1).fingerprint != autoencoder.fingerprint


def test_records_without_latents_are_as_they_were(tmp_path, clip):
    manifest = runner.embed_source(Pictures(), tmp_path / "r", clip, shard_size=9)
    assert "autoencoder_fingerprint" not in manifest["extra"]
    assert set(manifest["arrays"]) == {"tokens", "clip_image", "clip_text"}


DECODER = {
    "stage": "decoder",
    "data": {},
    "steps": 2,
    "batch_size": 8,
    "autoencoder": "folder",
    "optimizer": {"learning_rate": 1e-3},
    "preview": {"every": 2, "count": 2},
    **KANDINSKY,
    "stage_options": {**KANDINSKY["stage_options"], "preview_steps": 2},
}


@pytest.mark.slow
def test_a_decoder_learns_the_same_from_records_and_from_images(tmp_path, clip):
    """Also: previews are decoded, and the export knows its autoencoder."""
    autoencoder = make_autoencoder(CODES)
    config, parameters = read_training(DECODER), []
    for name, kept in (("made", autoencoder), ("read", None)):
        data = embed(tmp_path / f"records {name}", clip, kept)
        state = train(
            config,
            tmp_path / name,
            data=data,
            load_autoencoder=lambda *_: autoencoder,
        )
        parameters.append(jax.device_get(state.params))
        assert sorted(p.name for p in (tmp_path / name / "previews").iterdir())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *parameters)
    params, meta = load_run(str(tmp_path / "made"))
    export(params, meta, tmp_path / "made", tmp_path / "out")
    _, _, kept = native.read_part(tmp_path / "out", "decoder")
    assert kept["autoencoder_fingerprint"] == autoencoder.fingerprint


def test_another_autoencoder_is_refused(tmp_path, clip):
    data = embed(tmp_path / "r", clip, make_autoencoder(CODES))
    with pytest.raises(ValueError, match="latents of one mean nothing to another"):
        Latents(make_autoencoder(CODES, seed=1), data.spec)
    Latents(make_autoencoder(CODES), data.spec)


def test_a_stage_of_pixels_takes_no_autoencoder(tmp_path, clip):
    data = embed(tmp_path / "r", clip)
    latents = Latents(make_autoencoder(CODES), data.spec)
    with pytest.raises(ValueError, match="this stage learns no latents"):
        latents.start(types.SimpleNamespace(batch_spec={"image": ()}), None)
    odd = dataclasses.replace(data.spec, image_size=9)
    with pytest.raises(ValueError, match="images of 9 pixels do not divide"):
        Latents(make_autoencoder(CODES), odd)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no latents without config.autoencoder"):
        read_config({"clip": "", "data": {}, "splits": {"a": {}}, "latent_std": True})
    with pytest.raises(ValueError, match="no standard deviations"):
        LatentEncoder(make_autoencoder(CODES), std=True)
