"""What an export recommends for sampling, from the training config to the picture."""

import dataclasses

import numpy as np
import pytest

from tests.generation.conftest import make_model
from unclip_jax.errors import UsageError
from unclip_jax.interop.recommended import Recommended
from unclip_jax.stages.decoder import Diffusion

RECOMMENDED = {
    "prior": {"sampler": "ddpm", "sampling_steps": 4, "guidance": 2.0},
    "decoder": {
        "sampler": "ddpm",
        "sampling_steps": 3,
        "guidance": 1.25,
        "guidance_interval": [5, 19],  # as JSON has it
    },
}


def recommending(stack, analytic=None, **changes):
    """The stack whose parts' configs say `changes` of diffusion: {part: {...}}."""
    parts = dict(stack.parts)
    for kind, values in changes.items():
        part = parts[kind]
        config = {**part.config, "diffusion": {**part.config["diffusion"], **values}}
        parts[kind] = dataclasses.replace(part, config=config, analytic=analytic)
    return dataclasses.replace(stack, parts=parts)


@pytest.fixture(scope="module")
def model(stack):
    return make_model(recommending(stack, **RECOMMENDED))


@pytest.mark.slow
def test_what_is_not_asked_for_is_as_the_export_recommends(model, stack):
    asked = {"prior_guidance": 2.0, "decoder_guidance": 1.25, "prior_steps": 4}
    asked |= {"decoder_steps": 3, "decoder_sampler": "ddpm"}
    asked |= {"decoder_guidance_interval": (5, 19)}
    plain = make_model(stack)
    expected = plain.text2image(["a cat"], **asked)
    np.testing.assert_array_equal(model.text2image(["a cat"]), expected)
    z = plain.sample_embeddings(["a cat"], guidance=2.0, steps=4)
    np.testing.assert_array_equal(model.sample_embeddings(["a cat"]), z)
    options = dict(guidance=1.25, steps=3, sampler="ddpm", guidance_interval=(5, 19))
    np.testing.assert_array_equal(model.decode(z), plain.decode(z, **options))


def test_without_a_recommendation_all_is_as_it_was(stack):
    settings = make_model(stack).settings()
    assert settings["prior"] == {
        "sampler": "ddpm",
        "steps": 20,
        "variance": "fixed_small",
        "guidance": 4.0,
    }
    assert settings["decoder"] == {
        "sampler": "ddim",
        "steps": 20,
        "guidance": 8.0,
    }


def test_settings_say_what_is_drawn_with(model, stack):
    settings = model.settings(decoder_steps=2, decoder_guidance_rescale=0.5)
    assert settings["prior"] == {
        "sampler": "ddpm",
        "steps": 4,
        "variance": "fixed_small",
        "guidance": 2.0,
    }
    assert settings["decoder"] == {
        "sampler": "ddpm",
        "steps": 2,
        "variance": "learned_range",
        "guidance": 1.25,
        "guidance_interval": (5, 19),
        "guidance_rescale": 0.5,
    }
    everywhere = model.settings(decoder_guidance_interval=(0, 19))
    assert everywhere["decoder"]["guidance_interval"] == (0, 19)
    autoregressive = model.settings(prior="autoregressive", prior_guidance=3.0)
    assert autoregressive["ar_prior"] == {"guidance": 3.0}
    assert set(model.settings(parts=("decoder",))) == {"decoder"}


@pytest.mark.slow
def test_an_analytic_variance_is_the_default_where_there_is_a_table(stack):
    analytic = {"prior": {**RECOMMENDED["prior"], "variance": "analytic"}}
    table = np.linspace(0.2, 1, 20)
    model = make_model(recommending(stack, table, **analytic))
    drawn = model.sample_embeddings(["a cat"])
    explicit = model.sample_embeddings(["a cat"], variance="analytic")
    np.testing.assert_array_equal(drawn, explicit)
    other = model.sample_embeddings(["a cat"], variance="fixed_small")
    assert (drawn != other).any()
    # another sampler has no variance to choose
    assert "variance" not in model.settings(prior_sampler="ddim")["prior"]


def test_an_analytic_variance_without_a_table_names_the_command(stack):
    analytic = {"prior": {**RECOMMENDED["prior"], "variance": "analytic"}}
    model = make_model(recommending(stack, None, **analytic))
    with pytest.raises(
        FileNotFoundError,
        match="training config recommends, needs a table.*estimate_variance "
        "--model=exports/tiny.*or ask for another",
    ):
        model.text2image(["a cat"])
    assert model.settings(prior_variance="fixed_small")["prior"]["steps"] == 4


@pytest.mark.parametrize("text", ["250", "250-999", "a,b", "1,2,3"])
def test_a_recommended_interval_is_two_timesteps(text):
    with pytest.raises(UsageError, match="expected the first and the last timestep"):
        _ = Recommended(guidance_interval=text).values


def test_an_interval_is_recommended_to_decoders():
    recommended = Recommended(guidance_interval="250, 999")
    config = recommended.apply({"diffusion": {"num_steps": 1000}}, "decoder")
    assert config["diffusion"]["guidance_interval"] == [250, 999]
    with pytest.raises(UsageError, match="the prior is guided at all timesteps"):
        recommended.apply(config, "prior")
    with pytest.raises(UsageError, match=r"\(999, 250\): expected \(first, last\)"):
        Diffusion(guidance_interval=(999, 250))
