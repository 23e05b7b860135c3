"""Progress bars of the methods that draw: one argument, the same everywhere."""

import inspect

import pytest

from unclip_jax import Prior
from unclip_jax.generation.editing import Editing

DRAWING = ["text2image", "sample_embeddings", "decode", "invert", "invert_pixels"]
DRAWING += ["variations", "reconstruct", "interpolate", "text_diff", "inpaint"]
DRAWING += ["pca_reconstructions", "img2img", "emb2emb"]


@pytest.mark.parametrize("name", DRAWING)
def test_the_argument_is_there_and_names_are_the_same(name):
    parameters = inspect.signature(getattr(Editing, name)).parameters
    assert parameters["progress"].default is None
    assert not {"num_steps", "guidance_scale", "count", "n", "prompt_embeds"} & {
        *parameters
    }
    for key, value in {"seed": 0, "first": 0}.items():
        if key in parameters:
            assert parameters[key].default == value


def test_a_prior_has_it_too():
    assert inspect.signature(Prior.sample).parameters["progress"].default is None


@pytest.mark.slow
def test_bars_are_shown_when_asked_for(model, images, capsys):
    options = {"steps": 2, "guidance": 1.0}
    for progress in (False, None):  # nobody watches a test
        model.reconstruct(images[:1], **options, progress=progress)
        assert not capsys.readouterr().err
    model.reconstruct(images[:1], **options, progress=True)
    shown = capsys.readouterr().err
    assert "drawing: inversion:" in shown and "drawing: decoder: 100%" in shown
    assert "1 of 1" in shown
    many = [images[0]] * 9  # more than a batch
    model.encode_image(model.fit_for_clip(many), progress=True)
    assert "encoding: 100%" in capsys.readouterr().err
