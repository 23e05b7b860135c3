"""Kandinsky 2.2's pipelines that start from a picture, against ours; as test_kandinsky.

The greatest difference measured in float32 on a CPU is 4e-5; with a depth map, 1.4e-4.
"""

import jax
import numpy as np
import pytest

from tests.parity import kandinsky_pipeline as tiny
from tests.parity.our_noise import (
    SEED,
    hand_noise,
    our_noise,
    to_torch,
    use_our_tables,
)
from tests.parity.test_kandinsky import EMBEDDING, GUIDANCE, LATENT, PROMPTS
from unclip_jax.diffusion.process import from_uint8
from unclip_jax.generation import UnCLIP, sampling
from unclip_jax.generation.latents import decode, encode

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("single_device")

STEPS, STRENGTH = 6, 0.5
PIPELINES = "diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2"


def pictures(count=2):
    shape = count, tiny.IMAGE, tiny.IMAGE, 3
    return np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture(scope="module")
def z():
    shape = 2, *EMBEDDING
    return np.random.default_rng(4).standard_normal(shape).astype(np.float32)


@pytest.fixture
def draw_theirs(kandinsky, monkeypatch):
    """(pipeline, embeddings, steps, options) -> their pictures in [-1, 1]."""

    def draw(pipeline, z, steps, shape=LATENT, **options):
        pipeline.set_progress_bar_config(disable=True)
        use_our_tables(monkeypatch, pipeline.scheduler, "linear:0.00085:0.012")
        numbers = range(steps)
        hand_noise(monkeypatch, "scheduling_ddpm", sampling.DECODER, shape, numbers)
        images = pipeline(
            image_embeds=torch.from_numpy(z),
            negative_image_embeds=kandinsky.prior.get_zero_embed(len(z)),
            guidance_scale=GUIDANCE,
            num_inference_steps=STEPS,
            output_type="np",
            **{"height": tiny.IMAGE, "width": tiny.IMAGE, **options},
        ).images
        return images * 2 - 1

    return draw


def start_noise(shape=LATENT):
    return to_torch(our_noise(sampling.DECODER, sampling.START, shape))


def reconstruct_latents(model, images):
    """What the autoencoder of `model` makes of uint8 images, float32 in [-1, 1]."""
    part = model.stack.part("autoencoder")

    @jax.jit
    def reconstruct(params, images):
        latents = encode(part, params, images)
        return decode(part, params, latents, rounded=False)

    return np.asarray(reconstruct(part.params, from_uint8(images)))


@pytest.mark.slow
@pytest.mark.parametrize("columns", [tiny.IMAGE, 2 * tiny.IMAGE])
def test_img2img(model, kandinsky, draw_theirs, z, monkeypatch, floats, columns):
    theirs = diffusers.KandinskyV22Img2ImgPipeline(**kandinsky.decoder.components)
    shape = tiny.LATENT, columns // tiny.FACTOR, 4
    noise = start_noise(shape)
    monkeypatch.setattr(f"{PIPELINES}_img2img.randn_tensor", lambda *_, **__: noise)
    images = pictures()
    images = np.concatenate([images] * (columns // tiny.IMAGE), axis=2)
    expected = draw_theirs(
        theirs,
        z,
        int(STEPS * STRENGTH),
        shape,
        image=to_torch(from_uint8(images)),
        strength=STRENGTH,
        height=columns,  # theirs takes the one for the other
    )
    options = {"seed": SEED, "steps": STEPS, "start": images, "width": columns}
    ours = model.decode(z, strength=STRENGTH, **options)
    assert expected.std() > 0.05 and expected.shape[2] == columns
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    with pytest.raises(ValueError, match="strength 0.1 of 6 steps leaves none"):
        model.decode(z, strength=0.1, **options)


@pytest.mark.slow
def test_emb2emb(model, kandinsky, z, monkeypatch):
    """Theirs adds noise to embeddings as they are, ours in the prior's space.

    Handed what the prior's space makes of them, it does what ours does.
    """
    use_our_tables(monkeypatch, kandinsky.prior.scheduler, "cosine")
    theirs = diffusers.KandinskyV22PriorEmb2EmbPipeline(**kandinsky.prior.components)
    theirs.set_progress_bar_config(disable=True)
    count = int(STEPS * STRENGTH)
    numbers = range(count - 1)
    hand_noise(monkeypatch, "scheduling_unclip", sampling.PRIOR, EMBEDDING, numbers)
    noise = torch.from_numpy(our_noise(sampling.PRIOR, sampling.START, EMBEDDING))
    module = f"{PIPELINES}_prior_emb2emb"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: noise)
    space = model.stack.part("prior").params["space"]
    expected = theirs(
        PROMPTS,
        image=torch.from_numpy((z - space["mean"]) / space["std"]),
        strength=STRENGTH,
        num_inference_steps=STEPS,
        return_dict=False,
    )[0].numpy()
    options = {"seed": SEED, "num_candidates": 1, "steps": STEPS}
    ours = model.sample_embeddings(PROMPTS, start=z, strength=STRENGTH, **options)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    fresh = model.sample_embeddings(PROMPTS, **options)
    assert np.abs(ours - fresh).max() > 0.1


@pytest.fixture(scope="module")
def inpainter(kandinsky, tmp_path_factory):
    """(their pipeline, our model) of an inpainting decoder."""
    components = {**kandinsky.decoder.components, "unet": tiny.make_unet(in_channels=9)}
    theirs = diffusers.KandinskyV22InpaintPipeline(**components)
    folder = tmp_path_factory.mktemp("inpaint")
    theirs.save_pretrained(folder)
    return theirs, UnCLIP.load([kandinsky.folders[0], folder], batch_size=2)


@pytest.mark.slow
def test_inpaint(inpainter, draw_theirs, z, floats):
    """One picture: theirs takes what is known from the first of a batch."""
    theirs, ours = inpainter
    images, hole = pictures(1), np.zeros((1, tiny.IMAGE, tiny.IMAGE), bool)
    hole[:, 4:10, 6:] = True
    expected = draw_theirs(
        theirs,
        z[:1],
        STEPS,
        image=to_torch(from_uint8(images)),
        mask_image=to_torch(hole[..., None].astype(np.float32)),
        latents=start_noise()[:1],
    )
    drawn = ours.decode(z[:1], seed=SEED, steps=STEPS, keep=(images, ~hole))
    np.testing.assert_allclose(drawn[hole], expected[hole], atol=1e-3)
    np.testing.assert_allclose(drawn[~hole], from_uint8(images)[~hole], atol=1e-6)
    # without a mask it draws all of the image, and so does its inversion
    assert_inversion_is_undone(ours, pictures(1))


@pytest.mark.slow
def test_a_depth_map_guides(kandinsky, draw_theirs, z, monkeypatch, floats, tmp_path):
    unet = tiny.make_unet(in_channels=8, addition_embed_type="image_hint")
    components = {
        **kandinsky.decoder.components,
        "unet": unet,
        "movq": tiny.make_movq(8),
    }
    theirs = diffusers.KandinskyV22ControlnetPipeline(**components)
    theirs.save_pretrained(tmp_path)
    ours = UnCLIP.load([kandinsky.folders[0], tmp_path], batch_size=2)
    side = ours.draw_size
    hint = np.random.default_rng(6).integers(0, 256, (2, side, side, 3), np.uint8)
    expected = draw_theirs(
        theirs, z, STEPS, hint=to_torch(from_uint8(hint)), latents=start_noise()
    )
    drawn = ours.decode(z, seed=SEED, steps=STEPS, hint=hint)
    np.testing.assert_allclose(drawn, expected, atol=1e-3)
    drawn = ours.text2image(
        *(PROMPTS, SEED),
        hint=hint,
        prior_steps=2,
        num_candidates=1,
        decoder_steps=STEPS,
    )
    z = ours.sample_embeddings(PROMPTS, SEED, steps=2, num_candidates=1)
    expected = ours.decode(z, seed=SEED, steps=STEPS, hint=hint)
    np.testing.assert_allclose(drawn, expected, atol=1e-5)
    images = np.random.default_rng(7).integers(0, 256, hint.shape, np.uint8)
    assert_inversion_is_undone(ours, images, hint=hint)
    with pytest.raises(ValueError, match="draws after a hint, such as a depth map"):
        ours.decode(z, steps=2)
    # and from an image
    theirs = diffusers.KandinskyV22ControlnetImg2ImgPipeline(**components)
    noise = start_noise()
    module = f"{PIPELINES}_controlnet_img2img"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: noise)
    expected = draw_theirs(
        theirs,
        z,
        int(STEPS * STRENGTH),
        image=to_torch(from_uint8(images)),
        hint=to_torch(from_uint8(hint)),
        strength=STRENGTH,
        height=side,
        width=side,
    )
    options = {"seed": SEED, "steps": STEPS, "start": images, "hint": hint}
    drawn = ours.decode(z, strength=STRENGTH, **options)
    np.testing.assert_allclose(drawn, expected, atol=1e-3)


@pytest.mark.slow
def test_inpainting_without_training_keeps_the_rest(model):
    mask = np.zeros((tiny.IMAGE, tiny.IMAGE), bool)
    mask[4:] = True
    painted = model.inpaint(list(pictures()), mask, steps=3)
    np.testing.assert_array_equal(painted[:, :4], pictures()[:, :4])


@pytest.mark.slow
def test_inversion_in_latents_is_undone(model, floats):
    assert_inversion_is_undone(model, pictures())


def assert_inversion_is_undone(model, images, **seen):
    """Back from the noise that it found, the autoencoder's own picture."""
    z = model.encode_image(model.fit_for_clip(list(images)))
    options = {"guidance": 1.0, "steps": 20, **seen}
    noise = model.invert_pixels(images, z, corrections=8, **options)
    assert noise.shape == (len(images), *LATENT)
    again = model.decode(z, noise=noise, inverted=True, sampler="ddim", **options)
    assert np.abs(again - reconstruct_latents(model, images)).mean() < 0.02
