"""Stable unCLIP's pipeline of variations against UnCLIP.load of the folder it saved.

Noise is ours: what our keys draw is handed to their pipeline. The greatest difference
measured in float32 on a CPU is 3e-5 for pictures in [-1, 1].
"""

import numpy as np
import pytest

from tests.parity import stable_pipeline as tiny
from tests.parity.conftest import CAPTIONS
from tests.parity.our_noise import SEED, our_noise, use_our_tables
from tests.parity.test_kandinsky_editing import reconstruct_latents
from unclip_jax.generation import UnCLIP, sampling
from unclip_jax.images import fit

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("single_device")

STEPS, LEVEL = 4, 300
PROMPTS = list(CAPTIONS[:2])
LATENT, EMBEDDING = (tiny.LATENT, tiny.LATENT, 4), (tiny.SIZES.embed_dim,)


@pytest.fixture(scope="module")
def model(stable):
    return UnCLIP.load(stable[1], batch_size=2)


def pictures():
    shape = 2, 16, 16, 3
    return np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)


def draw_theirs(pipeline, monkeypatch, prompts, level):
    """Their pictures (N, H, W, 3) in [-1, 1]."""
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img"
    noise = torch.from_numpy(our_noise(sampling.DECODER, sampling.EMBEDDING, EMBEDDING))
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: noise)
    for scheduler, name in (
        (pipeline.scheduler, "scaled_linear"),
        (pipeline.image_noising_scheduler, "cosine"),
    ):
        use_our_tables(monkeypatch, scheduler, name)
    processor = pipeline.feature_extractor
    pixels = processor(list(pictures()), return_tensors="pt").pixel_values
    start = our_noise(sampling.DECODER, sampling.START, LATENT)
    images = pipeline(
        image=pixels,
        prompt=prompts,
        noise_level=level,
        latents=torch.from_numpy(np.moveaxis(start, -1, 1).copy()),
        num_inference_steps=STEPS,
        guidance_scale=10.0,
        output_type="np",
    ).images
    return images * 2 - 1


def test_what_is_read(model):
    assert model.stack.parts.keys() == {"clip", "decoder", "autoencoder"}
    decoder = model.stack.part("decoder")
    assert decoder.module.pad_id == model.tokenizer.token_id("!")
    assert decoder.config["diffusion"]["augmentation"] == {
        "schedule": "cosine",
        "num_steps": 1000,
    }
    settings = {"steps": 20, "sampler": "ddim", "guidance": 10.0}
    assert model.settings()["decoder"] == settings
    with pytest.raises(
        ValueError, match="noise_level must be .* from 0 to 999, got 1000"
    ):
        model.decode(np.zeros((1, *EMBEDDING)), noise_level=1000)
    with pytest.raises(ValueError, match="makes states, but no embedding"):
        model.encode_text("a cat")


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, LEVEL])
def test_variations_are_their_pictures(model, stable, monkeypatch, floats, level):
    prompts = PROMPTS if level else ["", ""]
    expected = draw_theirs(stable[0], monkeypatch, prompts, level)
    options = {"seed": SEED, "steps": STEPS, "noise_level": level, "eta": 0.0}
    options["prompts"] = prompts if level else None
    ours = model.variations(list(pictures()), **options)
    assert 0.2 < expected.std()
    np.testing.assert_allclose(ours, expected, atol=1e-3)


@pytest.mark.slow
def test_their_pipeline_draws_our_pictures_from_our_export(
    model, stable, monkeypatch, floats, tmp_path
):
    model.save_diffusers(tmp_path)
    theirs = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    tiny.assert_same_weights(theirs, stable[0])
    expected = draw_theirs(theirs, monkeypatch, PROMPTS, LEVEL)
    z = model.encode_image(np.stack([fit(x, 16) for x in pictures()]))
    options = {"seed": SEED, "steps": STEPS, "noise_level": LEVEL}
    np.testing.assert_allclose(model.decode(z, PROMPTS, **options), expected, atol=1e-3)
    again = UnCLIP.load(tmp_path)
    assert again.settings() == model.settings()


@pytest.mark.slow
def test_inversion_is_undone(stable, floats, tmp_path):
    """Back from the noise that it found, with the captions that it saw.

    By a smoother UNet, of which fewer steps do.
    """
    unet = tiny.make_unet()
    unet.conv_out.weight.data *= 0.1
    parts = {**stable[0].components, "unet": unet}
    diffusers.StableUnCLIPImg2ImgPipeline(**parts).save_pretrained(tmp_path)
    model = UnCLIP.load(tmp_path, batch_size=2)
    options = {"guidance": 1.0, "steps": 10}
    more = {"corrections": 3, "prompts": PROMPTS}
    z, noise = model.invert(list(pictures()), **options, **more)
    options |= {"noise": noise, "inverted": True, "sampler": "ddim"}
    again = model.decode(z, PROMPTS, **options)
    best = reconstruct_latents(model, pictures())
    assert np.abs(again - best).mean() < 0.01
    # without the captions, or with noise on the embedding, it is another path
    for other in ({}, {"prompts": PROMPTS, "noise_level": 500}):
        assert np.abs(model.decode(z, **options, **other) - best).mean() > 0.02


@pytest.mark.slow
def test_prompts_are_captions_beside_the_image(model, floats):
    """Editing without a prior: the image's own embedding, and the prompts' states."""
    few = {"steps": 3, "seed": SEED}
    z = model.encode_image(pictures())
    expected = model.decode(z, PROMPTS, start=pictures(), strength=0.7, **few)
    drawn = model.img2img(list(pictures()), PROMPTS, strength=0.7, **few)
    np.testing.assert_array_equal(drawn, expected)
    plain = model.img2img(list(pictures()), strength=0.7, **few)
    assert np.abs(drawn - plain).max() > 0.01


@pytest.mark.parametrize("kind", ["clip", "decoder", "autoencoder"])
def test_a_part_is_exported_and_verified(model, stable, kind, tmp_path):
    tiny.export_and_compare(model, kind, stable[1] / "tokenizer", tmp_path)
