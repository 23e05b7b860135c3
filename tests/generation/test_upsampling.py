"""Pictures made larger by the upsamplers of an export."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.generation.conftest import make_model
from unclip_jax import models
from unclip_jax.generation.loading import check_together, load_stack
from unclip_jax.interop import components, native

OPTIONS = {"prior_steps": 2, "decoder_steps": 2, "num_candidates": 1}
PROMPTS = ["a red heart", "a blue cat on teal", "the umbrella"]


def make_upsampler(size, low_res_size, seed=0):
    config = {
        "model": {
            "image_size": size,
            "low_res_size": low_res_size,
            "channels": 8,
            "channel_mult": [1],
            "num_res_blocks": 1,
            "norm_groups": 4,
        },
        "diffusion": {
            "schedule": "linear",
            "num_steps": 100,
            "prediction": "epsilon",
            "sampling_steps": 3,
        },
    }
    module = models.build("upsampler", config["model"])
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda s: rng.normal(size=s.shape, scale=0.2).astype(np.float32),
        components.param_shapes("upsampler", module),
    )
    return components.build_component(
        f"upsampler_{size}", config, params, {}, where="tiny"
    )


@pytest.fixture(scope="module")
def cascade(stack):
    """8 pixels from the decoder, then 16, then 32; given in the wrong order."""
    ups = {"upsampler_32": make_upsampler(32, 16, 1), "upsampler_16": None}
    ups["upsampler_16"] = make_upsampler(16, 8)
    return dataclasses.replace(stack, parts={**ups, **stack.parts})


@pytest.fixture(scope="module")
def large(cascade):
    return make_model(cascade)


@pytest.mark.slow
def test_pictures_come_in_the_final_resolution(large, cascade):
    assert cascade.upsamplers == ("upsampler_16", "upsampler_32")
    assert large.image_size == 32
    drawn = large.text2image(PROMPTS, seed=3, **OPTIONS)
    assert drawn.shape == (3, 32, 32, 3) and drawn.dtype == np.uint8
    assert len({picture.tobytes() for picture in drawn}) == 3
    # a picture depends neither on its batch nor on its place there
    again = large.text2image(PROMPTS[1:], seed=3, first=1, **OPTIONS)
    assert np.abs(again.astype(int) - drawn[1:]).max() <= 1
    other = large.text2image(PROMPTS, seed=4, **OPTIONS)
    assert (other != drawn).any()


@pytest.mark.slow
def test_the_decoders_picture_decides_what_is_enlarged(large, images):
    a, b = large.variations(images[:2], seed=0, eta=0.0, steps=2)
    assert a.shape == (32, 32, 3)
    assert np.abs(a.astype(int) - b).max() > 1


@pytest.mark.slow
def test_all_noise_is_fixed_along_a_row(large, images):
    """The upsamplers' too (paper, section 3: what changes is what was changed)."""
    options = dict(source="a cat", target="a dog", thetas=(0.0, 0.0, 0.0), steps=3)
    rows = large.text_diff(images[:3], **options)  # 9 cells in batches of 8
    np.testing.assert_array_equal(rows[:, 1], rows[:, 0])
    np.testing.assert_array_equal(rows[:, 2], rows[:, 0])
    options = dict(noise="shared", steps=3)
    same = large.interpolate(images[:2], images[:2], frames=3, **options)
    np.testing.assert_array_equal(same[:, 2], same[:, 0])


def test_a_cascade_with_a_gap_is_refused(stack):
    gap = {**stack.parts, "upsampler_32": make_upsampler(32, 16)}
    with pytest.raises(ValueError, match="pictures of 16 pixels, decoder makes .* 8"):
        check_together(dataclasses.replace(stack, parts=gap))


def test_exports_hold_any_number_of_them(tmp_path):
    for size in (16, 32):
        part = make_upsampler(size, size // 2)
        native.write_part(tmp_path, part.kind, part.config, part.params, {"step": 5})
    assert set(load_stack(tmp_path).parts) == {"upsampler_16", "upsampler_32"}
    assert set(load_stack(tmp_path, ("upsampler_32",)).parts) == {"upsampler_32"}
    assert not load_stack(tmp_path, native.PARTS).parts
    read = load_stack(tmp_path).part("upsampler_32")
    assert read.clip_fingerprint is None and read.meta["step"] == 5
    for a, b in zip(
        jax.tree.leaves(read.params), jax.tree.leaves(part.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["upsampler", "upsampler_", "upsampler_x", "up_64"])
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="upsampler_SIZE"):
        native.write_part(tmp_path, name, {}, {}, {"clip_fingerprint": "x"})
