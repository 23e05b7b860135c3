"""Sampling with Karlo's forms: CLIP's text states, and a network for the last step."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.generation.conftest import make_model
from unclip_jax import models
from unclip_jax.generation import sampling
from unclip_jax.generation.loading import check_together, load_stack
from unclip_jax.generation.resolve import SamplerOptions
from unclip_jax.generation.upsampling import upsample
from unclip_jax.interop import components, native

PROMPTS = ["a red heart", "a blue cat on teal"]


@pytest.fixture(scope="module")
def on_states(stack, resized):
    """A decoder that reads captions with CLIP."""
    decoder = resized("decoder", caption="clip_states")
    return dataclasses.replace(stack, parts={**stack.parts, "decoder": decoder})


@pytest.mark.slow
def test_the_caption_reaches_the_decoder_through_clip(on_states):
    model = make_model(on_states)
    z = np.ones((2, 8), np.float32)
    options = {"steps": 6, "guidance": 2.0}
    prompts = ["a cat", "seven green trees"]
    a, b = model.decode(z, prompts, **options).astype(int)
    a_again, a_with_b = model.decode(z, ["a cat"] * 2, **options).astype(int)
    np.testing.assert_array_equal(a, a_again)
    assert np.abs(a_with_b - b).max() > 1  # the same noise and embedding
    images = model.text2image(PROMPTS, prior_steps=2, decoder_steps=2, num_candidates=1)
    assert images.shape == (2, 8, 8, 3)


def test_without_clip_it_says_what_is_missing(on_states):
    alone = {k: v for k, v in on_states.parts.items() if k != "clip"}
    model = make_model(dataclasses.replace(on_states, parts=alone))
    with pytest.raises(FileNotFoundError, match="has no clip"):
        model.decode(np.ones((1, 8), np.float32), ["a cat"], steps=2)


def make_upsampler(kind, seed, channels=8):
    config = {
        "model": {
            "image_size": 16,
            "low_res_size": 8,
            "channels": channels,
            "channel_mult": [1],
            "num_res_blocks": 1,
            "norm_groups": 4,
            "resize": "bicubic",
            "scale_shift": False,
        },
        "diffusion": {
            "schedule": "cosine",
            "num_steps": 100,
            "prediction": "epsilon",
            "sampler": "ddpm",
            "sampling_steps": 3,
        },
    }
    module = models.build("upsampler", config["model"])
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda s: rng.normal(size=s.shape, scale=0.2).astype(np.float32),
        components.param_shapes("upsampler", module),
    )
    return components.build_component(kind, config, params, {}, where="tiny")


@pytest.fixture(scope="module")
def networks():
    names = ("upsampler_16", "upsampler_16_last")
    return [make_upsampler(name, seed) for seed, name in enumerate(names)]


@pytest.mark.slow
def test_the_last_network_takes_the_last_step_alone(networks):
    first, last = networks
    images = np.linspace(-1, 1, 8 * 8 * 3, dtype=np.float32).reshape(1, 8, 8, 3)

    @functools.partial(jax.jit, static_argnums=2)
    def enlarge(params, last, steps):
        inputs = images, np.uint32(0), np.zeros(1, np.int32), last
        options = SamplerOptions(steps, "ddpm")
        run = functools.partial(upsample, first, params, options=options)
        count = sampling.count_steps(first, options)
        return run(sampling.Piece(run(None, *inputs), 0, count, count), *inputs)

    a, b = first.params, last.params
    alone = enlarge(a, None, 3)
    np.testing.assert_allclose(enlarge(a, a, 3), alone, atol=1e-5)
    np.testing.assert_allclose(enlarge(a, b, 1), enlarge(b, None, 1), atol=1e-5)
    both = enlarge(a, b, 3)
    for one in (alone, enlarge(b, None, 3)):
        assert np.abs(both - one).max() > 1e-2


@pytest.mark.slow
def test_an_unclip_uses_both_networks(stack, networks):
    drawn = []
    for count in (1, 2):
        ups = {part.kind: part for part in networks[:count]}
        both = {**stack.parts, **ups}
        model = make_model(dataclasses.replace(stack, parts=both))
        assert model.image_size == 16
        drawn.append(model.decode(np.ones((1, 8), np.float32), ["a cat"], steps=2))
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() > 1


def test_exports_hold_it_beside_the_first(networks, tmp_path):
    for i, part in enumerate(networks):
        native.write_part(tmp_path, part.kind, part.config, part.params, {"step": i})
    for wanted in ("upsampler", "upsampler_16"):
        read = load_stack(tmp_path, (wanted,))
        assert set(read.parts) == {"upsampler_16", "upsampler_16_last"}
    assert read.parts["upsampler_16_last"].meta["step"] == 1


def test_a_last_network_of_another_kind_is_refused(stack, networks):
    other = make_upsampler("upsampler_16_last", 0, channels=4)
    ups = {"upsampler_16": networks[0], "upsampler_16_last": other}
    mixed = dataclasses.replace(stack, parts={**stack.parts, **ups})
    with pytest.raises(
        ValueError, match="upsampler_16_last must be models of the same"
    ):
        check_together(mixed)
