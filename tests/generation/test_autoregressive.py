"""UnCLIP with the autoregressive prior, beside the diffusion prior and alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import make_model
from unclip_jax.generation.sampling import CODES, PRIOR, fold_keys
from unclip_jax.models.ar_sampling import sample

PROMPTS = [f"a picture number {chr(97 + i) * (i + 1)}" for i in range(11)]
CHOSEN = {"prior": "autoregressive", "num_candidates": 1}


def without(stack, *kinds):
    kept = {kind: part for kind, part in stack.parts.items() if kind not in kinds}
    return make_model(dataclasses.replace(stack, parts=kept))


@pytest.fixture(scope="module")
def drawn(model):
    return model.sample_embeddings(PROMPTS, seed=5, **CHOSEN)


def test_embeddings_are_those_of_the_models_own_sampling(model, stack, drawn):
    assert drawn.shape == (11, 8) and drawn.dtype == np.float32
    part = stack.parts["ar_prior"]

    @jax.jit
    def draw(tokens, text):
        keys = fold_keys(np.uint32(5), jnp.arange(8), PRIOR, CODES)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)  # candidate 0
        codes = sample(part.module, part.params, tokens, text, keys, scale=4.0)
        return part.module.apply({"params": part.params}, codes, method="decode")

    tokens, text = stack.tokenizer.encode(PROMPTS[:8]), model.encode_text(PROMPTS[:8])
    np.testing.assert_allclose(draw(tokens, text), drawn[:8], atol=1e-4)


def test_same_seed_same_embeddings_whatever_the_batch(model, drawn):
    rest = model.sample_embeddings(PROMPTS[9:], seed=5, first=9, **CHOSEN)
    np.testing.assert_allclose(rest, drawn[9:], atol=1e-5)
    other = model.sample_embeddings(PROMPTS, seed=6, **CHOSEN)
    assert np.abs(other - drawn).mean() > 0.1


@pytest.mark.slow
def test_auto_takes_the_diffusion_prior_or_the_one_there_is(model, stack, drawn):
    options = {"seed": 5, "num_candidates": 1, "steps": 2}
    auto = model.sample_embeddings(PROMPTS, **options)
    diffusion = model.sample_embeddings(PROMPTS, **options, prior="diffusion")
    np.testing.assert_array_equal(auto, diffusion)
    assert np.abs(auto - drawn).mean() > 0.1
    alone = without(stack, "prior").sample_embeddings(PROMPTS, **options)
    np.testing.assert_allclose(alone, drawn, atol=1e-5)


@pytest.mark.slow
def test_pictures_are_those_of_the_embeddings(model):
    drawn = model.text2image(PROMPTS, prior="autoregressive", decoder_steps=3)
    z = model.sample_embeddings(PROMPTS, prior="autoregressive")
    again = model.decode(z, PROMPTS, steps=3)
    assert np.abs(again.astype(int) - drawn).max() <= 1


@pytest.mark.slow
def test_of_more_candidates_the_nearest_is_kept(model, drawn):
    more = model.sample_embeddings(
        PROMPTS, seed=5, prior="autoregressive", num_candidates=4
    )
    text = model.encode_text(PROMPTS)

    def score(z):
        return (z * text).sum(-1) / np.linalg.norm(z, axis=-1)

    assert (score(more) >= score(drawn) - 1e-5).all()
    assert (score(more) > score(drawn) + 1e-3).any()


@pytest.mark.slow
def test_temperature_and_truncation_narrow_the_draws(model):
    same = ["the same caption"] * 8

    def spread(**options):
        options = {"dot_quantile": 0.99, **CHOSEN, **options}
        return model.sample_embeddings(same, **options).std(0).mean()

    assert spread(temperature=0.0) < 1e-6 and spread(top_k=1) < 1e-6
    assert spread(top_p=0.0) < 1e-6 < 0.05 < spread()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prior": "gan"}, "prior 'gan': expected one of auto, diffusion, autoreg"),
        ({"temperature": -1.0}, "temperature must be a finite number of at least 0"),
        ({"top_k": 9}, "top_k must be a whole number from 0 to 8, got 9"),
        ({"top_p": 1.5}, "top_p must be a finite number of at least 0 and at most 1"),
        ({"dot_quantile": 2.0}, "dot_quantile must be a finite number.*at most 1"),
    ],
)
def test_bad_options(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.sample_embeddings(["a cat"], **{**CHOSEN, **options})


def test_a_missing_prior_names_the_command(stack):
    with pytest.raises(FileNotFoundError, match="has no ar_prior.*THE_AR_PRIOR_RUN"):
        without(stack, "ar_prior").sample_embeddings(["a cat"], **CHOSEN)
    with pytest.raises(FileNotFoundError, match="has no prior.*THE_PRIOR_RUN"):
        without(stack, "prior", "ar_prior").sample_embeddings(["a cat"])
