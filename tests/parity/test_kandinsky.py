"""Kandinsky 2.2's pipelines against UnCLIP.load of the two folders they saved.

Noise is ours: what our keys draw is handed to their schedulers, and so are our tables,
in float64 (see test_pipeline.py). The greatest differences measured in float32 on a CPU
are 1e-5 for embeddings of order 1 and 3e-5 for pictures in [-1, 1].
"""

import dataclasses
import shutil

import numpy as np
import pytest

from tests.parity import kandinsky_pipeline as tiny
from tests.parity.conftest import CAPTIONS
from tests.parity.our_noise import (
    SEED,
    hand_noise,
    our_noise,
    to_torch,
    use_our_tables,
)
from unclip_jax.embedding.frozen_clip import FrozenCLIP
from unclip_jax.generation import UnCLIP, sampling
from unclip_jax.interop import kandinsky as kandinsky_folders
from unclip_jax.interop import native
from unclip_jax.interop.export import compare, export
from unclip_jax.interop.init_from import load_initial

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("single_device")

PROMPTS = list(CAPTIONS[:2])
PRIOR_STEPS, STEPS, GUIDANCE = 5, 4, 4.0
EMBEDDING, LATENT = (tiny.SIZES.embed_dim,), (tiny.LATENT, tiny.LATENT, 4)


@pytest.fixture
def embeddings(kandinsky, monkeypatch):
    """Theirs: (image embeddings of the prompts, those of the zero image)."""
    use_our_tables(monkeypatch, kandinsky.prior.scheduler, "cosine")
    steps = range(PRIOR_STEPS - 1)  # none at t = 0
    queue = hand_noise(
        monkeypatch, "scheduling_unclip", sampling.PRIOR, EMBEDDING, steps
    )
    start = our_noise(sampling.PRIOR, sampling.START, EMBEDDING)
    z, null = kandinsky.prior(
        PROMPTS,
        num_inference_steps=PRIOR_STEPS,
        latents=torch.from_numpy(start),
        return_dict=False,
    )
    assert not queue
    return z, null


def draw_theirs(pipeline, monkeypatch, embeddings, steps=STEPS, **options):
    """Their pictures (N, H, W, 3) in [-1, 1]."""
    z, null = embeddings
    use_our_tables(monkeypatch, pipeline.scheduler, "linear:0.00085:0.012")
    hand_noise(monkeypatch, "scheduling_ddpm", sampling.DECODER, LATENT, range(steps))
    start = to_torch(our_noise(sampling.DECODER, sampling.START, LATENT))
    options = {"latents": start, "height": tiny.IMAGE, "width": tiny.IMAGE, **options}
    images = pipeline(
        image_embeds=z,
        negative_image_embeds=null,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        output_type="np",
        **options,
    ).images
    return images * 2 - 1


def test_two_folders_are_one_model(model):
    assert model.stack.parts.keys() == {"clip", "prior", "decoder", "autoencoder"}
    assert model.draw_size == model.image_size == tiny.IMAGE
    assert model.noise_shape == LATENT
    prior = model.stack.part("prior").config["diffusion"]
    assert prior["clip"] == 10.0 and prior["sampling_steps"] == 25
    assert model.settings()["decoder"] == {
        "steps": 100,
        "sampler": "ddpm",
        "variance": "fixed_small",
        "guidance": 4.0,
    }


def test_the_unconditional_embedding_is_the_zero_images(model, kandinsky):
    expected = kandinsky.prior.get_zero_embed()[0].detach().numpy()
    null = model.stack.part("decoder").params["null_clip_image"]
    np.testing.assert_allclose(null, expected, atol=1e-5)


@pytest.mark.slow
def test_the_prior_draws_their_embeddings(model, embeddings):
    z, _ = embeddings
    options = {"seed": SEED, "steps": PRIOR_STEPS, "num_candidates": 1}
    ours = model.sample_embeddings(PROMPTS, **options)
    assert z.abs().mean() > 0.3 and (z[0] - z[1]).abs().max() > 0.1
    np.testing.assert_allclose(ours, z.numpy(), atol=1e-4)


@pytest.mark.slow
def test_text_becomes_their_pictures(model, kandinsky, embeddings, monkeypatch, floats):
    expected = draw_theirs(kandinsky.decoder, monkeypatch, embeddings)
    ours = model.text2image(
        PROMPTS,
        seed=SEED,
        prior_steps=PRIOR_STEPS,
        decoder_steps=STEPS,
        num_candidates=1,
    )
    assert 0.2 < expected.std() and np.ptp(expected, axis=0).max() > 0.5
    np.testing.assert_allclose(ours, expected, atol=1e-3)


@pytest.mark.slow
def test_a_negative_prompt(model, kandinsky, monkeypatch, floats):
    """Its own embedding is drawn from the noise of the picture's, as theirs here."""
    use_our_tables(monkeypatch, kandinsky.prior.scheduler, "cosine")
    start = our_noise(sampling.PRIOR, sampling.START, EMBEDDING)[:1]
    steps = range(PRIOR_STEPS - 1)
    noise = [our_noise(sampling.PRIOR, sampling.STEPS, EMBEDDING, i) for i in steps]
    queue = [torch.from_numpy(np.repeat(x[:1], 2, axis=0)) for x in noise]
    path = "diffusers.schedulers.scheduling_unclip.randn_tensor"
    monkeypatch.setattr(path, lambda *_, **__: queue.pop(0))
    both = kandinsky.prior(
        PROMPTS[0],
        negative_prompt=PROMPTS[1],
        num_inference_steps=PRIOR_STEPS,
        latents=torch.from_numpy(np.repeat(start, 2, axis=0)),
        return_dict=False,
    )
    options = {"seed": SEED, "num_candidates": 1, "negative_prompt": PROMPTS[1]}
    z = model.sample_embeddings(PROMPTS[0], steps=PRIOR_STEPS, **options)
    np.testing.assert_allclose(z, both[0].numpy(), atol=1e-4)
    theirs = kandinsky.decoder
    latents = to_torch(our_noise(sampling.DECODER, sampling.START, LATENT))[:1]
    expected = draw_theirs(theirs, monkeypatch, both, latents=latents)
    steps = {"prior_steps": PRIOR_STEPS, "decoder_steps": STEPS}
    ours = model.text2image(PROMPTS[0], **options, **steps)
    np.testing.assert_allclose(ours, expected, atol=1e-3)


@pytest.mark.slow
def test_another_sampler_and_size(model, kandinsky, embeddings, monkeypatch, floats):
    """DDIM from the published config, at 3:2."""
    theirs = diffusers.KandinskyV22Pipeline(**kandinsky.decoder.components)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    shape = (12, 8, 4)
    start = to_torch(our_noise(sampling.DECODER, sampling.START, shape))
    size = {"height": 24, "width": 16}
    # 7 does not divide 1000: their stride is 142
    expected = draw_theirs(
        theirs, monkeypatch, embeddings, steps=7, latents=start, **size
    )
    z = embeddings[0].numpy()
    options = {"seed": SEED, "sampler": "ddim", "steps": 7}
    ours = model.decode(z, **options, **size)
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    with pytest.raises(ValueError, match="width must be a multiple of 4, got 18"):
        model.decode(z, width=18)
    tiled = model.decode(z, **options, **size, tile=16)
    assert 0 < np.abs(tiled - ours).mean() < 0.2
    with pytest.raises(ValueError, match="tile must be a multiple of 8, got 20"):
        model.decode(z, tile=20)


@pytest.mark.slow
def test_a_learned_variance_and_thresholding(
    model, kandinsky, embeddings, monkeypatch, floats, tmp_path
):
    theirs = diffusers.KandinskyV22Pipeline(**kandinsky.decoder.components)
    theirs.scheduler = diffusers.DDPMScheduler(
        **{**tiny.SCHEDULER, "variance_type": "learned_range"},
        thresholding=True,
        sample_max_value=2.0,
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path)
    expected = draw_theirs(theirs, monkeypatch, embeddings)
    other = UnCLIP.load([kandinsky.folders[0], tmp_path], batch_size=2)
    ours = other.decode(embeddings[0].numpy(), seed=SEED, steps=STEPS)
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    assert np.abs(ours - model.decode(embeddings[0].numpy(), steps=STEPS)).max() > 0.1


def test_one_folder_or_another_clip_is_refused(kandinsky, tmp_path):
    prior, decoder = kandinsky.folders
    with pytest.raises(ValueError, match="has the decoder alone"):
        UnCLIP.load(decoder)
    assert UnCLIP.load(prior).stack.parts.keys() == {"clip", "prior"}
    with pytest.raises(FileNotFoundError, match="'nowhere' does not exist"):
        UnCLIP.load(f"{prior},nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is no pipeline of Kandinsky 2.2"):
        UnCLIP.load([prior, tmp_path / "folder"])
    narrow = diffusers.KandinskyV22Pipeline(
        unet=tiny.make_unet(encoder_hid_dim=16),
        scheduler=diffusers.DDPMScheduler(**tiny.SCHEDULER),
        movq=tiny.make_movq(),
    )
    narrow.save_pretrained(tmp_path / "narrow")
    message = "takes embeddings of 16 numbers, the CLIP makes 24"
    with pytest.raises(ValueError, match=message):
        UnCLIP.load([prior, tmp_path / "narrow"])


@pytest.mark.slow
def test_their_pipelines_draw_our_pictures_from_our_export(
    model, kandinsky, monkeypatch, floats, tmp_path
):
    """Both written by us, both read by from_pretrained."""
    model.save_diffusers(tmp_path)
    prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(tmp_path / "prior")
    decoder = diffusers.KandinskyV22Pipeline.from_pretrained(tmp_path / "decoder")
    for ours, theirs in ((prior, kandinsky.prior), (decoder, kandinsky.decoder)):
        ours.set_progress_bar_config(disable=True)
        for name, module in theirs.components.items():
            if not hasattr(module, "state_dict"):
                continue
            state = ours.components[name].state_dict()
            assert state.keys() == module.state_dict().keys()
            for key, value in module.state_dict().items():
                np.testing.assert_array_equal(state[key].numpy(), value.numpy(), key)
    z = model.sample_embeddings(PROMPTS[:1], SEED, steps=2)
    both = torch.from_numpy(np.repeat(z, 2, axis=0)), prior.get_zero_embed(2)
    expected = draw_theirs(decoder, monkeypatch, both)
    ours = model.decode(both[0].numpy(), seed=SEED, steps=STEPS)
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    again = UnCLIP.load(tmp_path)
    assert again.stack.parts.keys() == model.stack.parts.keys()
    assert again.settings() == model.settings()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "prior", "decoder", "autoencoder"])
def test_a_part_is_exported_and_verified(model, kandinsky, kind, tmp_path):
    part = model.stack.part(kind)
    clip = model.stack.part("clip").clip_fingerprint
    tokenizer = str(kandinsky.folders[0] / "tokenizer")
    meta = {
        "step": 7,
        "config": {},
        "export": {"part": kind, "config": part.config},
        "data_info": {"clip_fingerprint": clip, "tokenizer_folder": tokenizer},
    }
    arguments = part.params, meta, tmp_path / "run", tmp_path / "out", "kandinsky"
    assert "for kandinsky" in export(*arguments)
    assert "none differs" in compare(*arguments)


@pytest.mark.parametrize("half", [0, 1])
def test_a_folder_that_lacks_a_module_is_refused(kandinsky, half, tmp_path):
    folders, original = [*kandinsky.folders], kandinsky.folders[half]
    for module in [path for path in original.iterdir() if path.is_dir()]:
        folders[half] = tmp_path / module.name
        shutil.copytree(original, folders[half])
        shutil.rmtree(folders[half] / module.name)
        with pytest.raises(FileNotFoundError, match=f"lacks {module.name}/ of its"):
            UnCLIP.load(folders)
    with pytest.raises(ValueError, match="both have a (prior|decoder): name one"):
        UnCLIP.load([*kandinsky.folders, original])


def test_parts_of_other_widths_are_refused(kandinsky, tmp_path):
    """A decoder or a prior of other embeddings, an autoencoder of other latents."""
    prior, decoder = kandinsky.folders
    parts, clip = kandinsky.decoder.components, tiny.SIZES.embed_dim
    narrow = tiny.make_unet(encoder_hid_dim=16)
    diffusers.KandinskyV22Pipeline(**{**parts, "unet": narrow}).save_pretrained(
        tmp_path / "narrow"
    )
    wide = diffusers.VQModel.from_config(
        {**parts["movq"].config, "latent_channels": 8, "vq_embed_dim": 8}
    )
    shutil.copytree(decoder, tmp_path / "wide")
    wide.save_pretrained(tmp_path / "wide" / "movq")
    shutil.copytree(prior, tmp_path / "prior")
    diffusers.PriorTransformer.from_config(
        {**kandinsky.prior.prior.config, "embedding_dim": 16}
    ).save_pretrained(tmp_path / "prior" / "prior")
    message = f"takes embeddings of 16 numbers, the CLIP makes {clip}"
    for folders, problem in (
        ([prior, tmp_path / "narrow"], f"the decoder of .* {message}"),
        ([tmp_path / "prior", decoder], f"the prior of .* {message}"),
        ([prior, tmp_path / "wide"], "latents of 4 channels, the autoencoder takes 8"),
    ):
        with pytest.raises(ValueError, match=problem):
            UnCLIP.load(folders)


def test_the_prior_is_trained_from_its_folder(model, kandinsky):
    """Its CLIP embeds, and its parameters are what training starts from."""
    folder, part = kandinsky.folders[0], model.stack.part("prior")
    clip = FrozenCLIP.load(folder, None, batch_size=2, text_states=True)
    assert clip.part.clip_fingerprint == part.clip_fingerprint
    run = {"export": {"part": "prior", "config": part.config}, "data_info": {}}
    params = native.flatten(load_initial(folder, run))
    for path, a in native.flatten(part.params).items():
        if not path.startswith("empty_"):  # the records have that
            np.testing.assert_array_equal(params[path], a, path)


def test_a_native_export_holds_all_of_it(model, kandinsky, tmp_path):
    for kind, part in model.stack.parts.items():
        meta = {"clip_fingerprint": model.stack.part("clip").clip_fingerprint}
        native.write_part(tmp_path, kind, part.config, part.params, meta)
    native.write_tokenizer(tmp_path, kandinsky.folders[0] / "tokenizer")
    again = UnCLIP.load(tmp_path)
    assert again.settings() == model.settings()
    assert again.noise_shape == LATENT and again.image_size == tiny.IMAGE
    for kind, part in model.stack.parts.items():
        assert again.stack.part(kind).module == part.module


def test_parts_of_another_clip_are_refused(model, kandinsky, tmp_path):
    """In a folder that they are written to, and in two that are loaded together."""
    write_part = kandinsky_folders.write_part
    write_part(tmp_path, model.stack.part("prior"))
    another = {"clip_fingerprint": "0" * 64}
    decoder = dataclasses.replace(model.stack.part("decoder"), **another)
    with pytest.raises(ValueError, match="would mix parts of different CLIPs"):
        write_part(tmp_path, decoder)
    write_part(tmp_path / "other", decoder)
    folders = kandinsky.folders[0], tmp_path / "other" / "decoder"
    with pytest.raises(ValueError, match="are of different CLIPs .*decoder 0000"):
        UnCLIP.load(folders, parts=("clip", "decoder"))


def test_a_hint_for_a_decoder_that_sees_none_is_refused(model):
    hint = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="sees no hint"):
        model.decode(np.zeros((1, *EMBEDDING), np.float32), hint=hint)
