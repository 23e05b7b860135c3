"""UnCLIP on tiny random models: shapes, reproducibility, guidance, errors."""

import dataclasses
import io
from functools import partial

import jax
import numpy as np
import pytest

from tests.generation.conftest import make_model
from unclip_jax.generation import UnCLIP, prior_sampling, sampling
from unclip_jax.progress import ProgressLine

FAST = {"prior_steps": 3, "decoder_steps": 3}
PROMPTS = [f"a picture number {chr(97 + i) * (i + 1)}" for i in range(11)]


@pytest.fixture(scope="module")
def drawn(model):
    return model.text2image(PROMPTS, seed=5, **FAST)


@pytest.fixture(scope="module")
def on_eight(stack):
    """The same model on all eight devices."""
    return UnCLIP(stack, batch_size=8)


def close(a, b, most=1):
    """uint8 pictures equal but for the last bit of a few pixels."""
    difference = np.abs(a.astype(int) - b.astype(int))
    assert difference.max() <= most, difference.max()


def test_shapes_types_and_variety(drawn):
    assert drawn.shape == (11, 8, 8, 3) and drawn.dtype == np.uint8
    assert len({picture.tobytes() for picture in drawn}) == 11
    assert 20 < drawn.std() < 200


def test_embeddings_of_another_encoder_are_refused(model):
    z = np.ones((1, model.stack.part("clip").module.embed_dim), np.float32)
    own = model.stack.part("decoder").clip_fingerprint
    drawn = model.decode(z, PROMPTS[:1], encoder=own, steps=2)
    assert drawn.shape == (1, 8, 8, 3)
    with pytest.raises(ValueError, match="of the encoder 'other', the decoder draws"):
        model.decode(z, PROMPTS[:1], encoder="other", steps=2)


def test_same_seed_same_pictures_other_seed_others(model, drawn):
    np.testing.assert_array_equal(model.text2image(PROMPTS, seed=5, **FAST), drawn)
    other = model.text2image(PROMPTS, seed=6, **FAST)
    assert np.abs(other.astype(int) - drawn).mean() > 5


def test_a_picture_does_not_depend_on_its_batch(model, drawn):
    close(model.text2image(PROMPTS[9:], seed=5, first=9, **FAST), drawn[9:])


@pytest.mark.slow
def test_eight_devices_draw_what_one_does(on_eight, drawn):
    close(on_eight.text2image(PROMPTS, seed=5, **FAST), drawn)


def test_the_place_in_the_list_decides_the_noise(model):
    twins = model.text2image(["the same"] * 2, seed=1, **FAST)
    assert np.abs(twins[0].astype(int) - twins[1]).mean() > 5


@pytest.mark.slow
def test_nothing_recompiles_at_the_second_call(model, drawn):
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 3 + 1)(1.0)
        assert compiled  # it is heard
        compiled.clear()
        # `drawn` compiled these; prompts, chunks, seed and guidance change nothing
        model.text2image(PROMPTS[:8] * 2, seed=3, **FAST, prior_guidance=2, eta=0.5)
        assert not compiled
        options = {"decoder_guidance_interval": [0, 10], "dynamic_threshold": 0.9}
        for options["decoder_guidance_interval"] in ([0, 10], (0, 10)):
            compiled.clear()
            model.text2image(PROMPTS[:8], seed=4, **FAST, **options)
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_text2image_is_prior_then_decoder(model, drawn):
    z = model.sample_embeddings(PROMPTS, seed=5, steps=3)
    assert z.shape == (11, 8) and z.dtype == np.float32
    close(model.decode(z, PROMPTS, seed=5, steps=3), drawn)


def test_candidates_are_ranked_by_the_text_embedding(model):
    def score(candidates):
        z = model.sample_embeddings(PROMPTS, seed=2, num_candidates=candidates, steps=3)
        text = model.encode_text(PROMPTS)
        return (z * text).sum(-1) / np.linalg.norm(z, axis=-1)

    one, two = score(1), score(2)
    # the single candidate is the first of the two
    assert (two >= one - 1e-5).all() and (two > one + 1e-3).any()


@pytest.mark.slow
def test_guidance_one_is_the_conditional_model(model):
    z = model.encode_text(PROMPTS)
    plain = model.decode(z, PROMPTS, guidance=1.0, steps=3)
    close(model.decode(z, PROMPTS, guidance=1.000001, steps=3), plain)
    guided = model.decode(z, PROMPTS, guidance=6.0, steps=3)
    assert np.abs(guided.astype(int) - plain).mean() > 0.5


@pytest.mark.slow
def test_guidance_can_be_limited_rescaled_and_thresholded(model):
    z = model.encode_text(PROMPTS)

    def decode(**options):
        return model.decode(z, PROMPTS, guidance=6.0, steps=3, **options)

    guided = decode()
    # of 20 timesteps, three steps take 19, 10 and 0
    plain = model.decode(z, PROMPTS, guidance=1.0, steps=3)
    close(decode(guidance_interval=(11, 18)), plain)
    close(decode(guidance_interval=(0, 19)), guided)
    for option in ({"guidance_rescale": 1.0}, {"dynamic_threshold": 0.5}):
        assert np.abs(decode(**option).astype(int) - guided).mean() > 0.1, option
    # what is not guided has no use for a program of its own
    programs = model.pipeline._jitted.values()
    before = sum(program._cache_size() for program in programs)
    idle = {"guidance_interval": (0, 3), "guidance_rescale": 0.5}
    close(model.decode(z, PROMPTS, guidance=1.0, steps=3, **idle), plain)
    assert sum(program._cache_size() for program in programs) == before


def test_steps_are_heard_of_once_each_on_eight_devices(on_eight, drawn):
    class Heard(list):
        def __call__(self, *counts):
            self.append(counts)

        def step(self, *step):
            self.append(step)

    heard = Heard()
    options = {"seed": 5, "progress": heard, **FAST}
    close(on_eight.text2image(PROMPTS, **options), drawn)
    counts = [entry for entry in heard if len(entry) == 2]
    assert counts == [(0, 11), (8, 11), (11, 11)]
    steps = [(part, i, 3) for part in ("prior", "decoder") for i in range(3)]
    first, second = heard.index((8, 11)), heard.index((11, 11))
    assert sorted(heard[1:first]) == sorted(heard[first + 1 : second]) == sorted(steps)
    assert heard[-1] == (11, 11)


def test_programs_call_nothing_on_the_host(model, drawn, monkeypatch):
    """A program that does is not kept in jax's cache on disk."""
    pipeline, seen = model.pipeline, {}

    def run(function, kind, *arrays, **static):
        program, params = pipeline.jit(function, kind), pipeline._device_params(kind)
        seen[function] = program.trace(params, *arrays, **static).jaxpr
        return program(params, *arrays, **static)

    monkeypatch.setattr(pipeline, "run", run)
    progress = ProgressLine("drawing", stream=io.StringIO())
    close(model.text2image(PROMPTS, seed=5, progress=progress, **FAST), drawn)
    assert {sampling.sample_decoder, prior_sampling.sample_prior} <= set(seen)
    assert "while" in str(seen[sampling.sample_decoder])  # the loop
    for jaxpr in seen.values():
        assert not jaxpr.effects and "callback" not in str(jaxpr)


def test_guidance_zero_sees_no_condition(model):
    z = model.encode_text(PROMPTS)
    a = model.decode(z, PROMPTS, guidance=0.0, steps=3)
    close(model.decode(-z[::-1], PROMPTS[::-1], guidance=0.0, steps=3), a)


@pytest.mark.slow
def test_without_prompts_the_decoder_sees_only_the_embedding(model):
    z = model.encode_text(PROMPTS)
    silent = model.decode(z, guidance=1.0, steps=3)
    close(model.decode(z, [""] * len(z), guidance=1.0, steps=3), silent)
    spoken = model.decode(z, PROMPTS, guidance=1.0, steps=3)
    assert (spoken != silent).any()
    other = model.decode(-z, guidance=1.0, steps=3)
    assert (other != silent).any()


@pytest.mark.slow
def test_samplers_can_be_chosen(model, drawn):
    other = model.text2image(PROMPTS, seed=5, decoder_sampler="ddpm", **FAST)
    assert other.shape == drawn.shape and (other != drawn).any()


def test_variations(model, images):
    drawn = model.variations(images, seed=1, steps=3)
    assert drawn.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(model.variations(images, seed=1, steps=3), drawn)
    z = model.encode_image(images)
    close(model.decode(z, seed=1, steps=3, eta=1.0), drawn)
    assert (model.variations(images, seed=2, steps=3) != drawn).any()
    assert (model.variations(images, seed=1, steps=3, eta=0.0) != drawn).any()


def test_encoders_equal_the_module(model, stack, images):
    clip = stack.parts["clip"]
    variables = {"params": clip.params}
    encode_image = jax.jit(partial(clip.module.apply, method="encode_image"))
    encode_text = jax.jit(partial(clip.module.apply, method="encode_text"))
    expected = encode_image(variables, images)
    np.testing.assert_allclose(model.encode_image(images), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_image(images[0]), expected[:1], atol=1e-5)
    tokens = stack.tokenizer.encode(PROMPTS)
    expected = encode_text(variables, tokens)
    np.testing.assert_allclose(model.encode_text(PROMPTS), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(PROMPTS[0]), expected[:1], atol=1e-5)


def test_zero_shot(model, images):
    labels = ["cat", "dog", "umbrella"]
    odds = model.zero_shot(images, labels, ["a {}", "one {} here"])
    assert odds.shape == (5, 3)
    np.testing.assert_allclose(odds.sum(1), 1, atol=1e-5)
    flipped = model.zero_shot(images, labels[::-1], ["a {}", "one {} here"])
    np.testing.assert_allclose(flipped[:, ::-1], odds, atol=1e-5)
    with pytest.raises(ValueError, match="no {} for the label"):
        model.zero_shot(images, labels, ["a photo"])


def test_progress_reaches_the_end(model):
    seen = []
    model.encode_text(PROMPTS, progress=lambda *x: seen.append(x))
    assert seen == [(0, 11), (8, 11), (11, 11)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [3]}, "prompt 0 must be a string"),
        ({"prior_guidance": float("nan")}, "prior guidance must be a finite number"),
        ({"decoder_guidance": float("inf")}, "decoder guidance must be a finite"),
        ({"decoder_guidance": "8"}, "decoder guidance must be a finite"),
        ({"prior_steps": 0}, "prior steps must be a whole number from 1 to 20, got 0"),
        ({"decoder_steps": 21}, "decoder steps must be a whole number from 1 to 20"),
        ({"decoder_steps": 2.5}, "decoder steps must be a whole number"),
        ({"num_candidates": 0}, "num_candidates must be a whole number from 1"),
        ({"decoder_sampler": "euler"}, "decoder sampler 'euler': expected one of"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"eta": -1.0}, "eta must be a finite number of at least 0"),
        ({"decoder_guidance_interval": (5, 2)}, r"interval \(5, 2\) is reversed"),
        ({"decoder_guidance_interval": (0, 20)}, "interval must be .* from 0 to 19"),
        ({"decoder_guidance_interval": (0, 1, 2)}, r"must be \(first, last\) timestep"),
        ({"decoder_guidance_interval": 7}, r"must be \(first, last\) timestep, got 7"),
        ({"decoder_guidance_interval": (0, np.nan)}, "interval must be a whole number"),
        ({"decoder_guidance_rescale": 1.5}, "rescale must be .* at most 1, got 1.5"),
        ({"dynamic_threshold": 0.0}, "dynamic threshold must be more than 0"),
        ({"dynamic_threshold": 99.5}, "dynamic threshold must be .* at most 1"),
        ({"dynamic_threshold": float("nan")}, "dynamic threshold must be a finite"),
        (
            {"decoder_variance": "analytic"},
            "an option of the sampler ddpm, not of ddim",
        ),
        (
            {"prior_variance": "big"},
            "prior variance 'big': expected one of fixed_small",
        ),
        ({"prior_variance": "learned_range"}, "prior does not predict its variance"),
    ],
)
def test_bad_arguments(model, arguments, message):
    arguments = {"prompts": ["a cat"], **FAST, **arguments}
    with pytest.raises(ValueError, match=message):
        model.text2image(**arguments)


def test_bad_images(model, images):
    with pytest.raises(ValueError, match="must be uint8.*float64"):
        model.encode_image(images / 255)
    with pytest.raises(ValueError, match=r"CLIP takes images \(N, 8, 8, 3\), got"):
        model.encode_image(np.zeros((2, 9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match="differ in size"):
        model.encode_image([images[0], images[0][:4]])
    with pytest.raises(ValueError, match="no images"):
        model.variations([])
    with pytest.raises(ValueError, match="NaN or infinity in rows"):
        model.decode(np.full((1, 8), np.nan))
    with pytest.raises(ValueError, match="2 prompts for 1 embeddings"):
        model.decode(np.ones((1, 8)), ["a", "b"])


@pytest.mark.parametrize("kind", ["clip", "prior", "decoder"])
def test_missing_parts_name_the_command(stack, kind):
    parts = {k: v for k, v in stack.parts.items() if k != kind}
    model = make_model(dataclasses.replace(stack, parts=parts))
    with pytest.raises(FileNotFoundError) as error:
        model.text2image(["a"], **FAST, prior="diffusion")
    assert f"has no {kind}" in str(error.value)
    assert f"--run=FOLDER_OF_THE_{kind.upper()}_RUN" in str(error.value)


def test_missing_tokenizer(stack):
    model = make_model(dataclasses.replace(stack, tokenizer=None))
    with pytest.raises(FileNotFoundError, match="has no tokenizer.*CLIP_RUN"):
        model.encode_text(["a"])
