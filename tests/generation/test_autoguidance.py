"""A decoder that is guided by a weaker one of the same export."""

import dataclasses

import numpy as np
import pytest

from tests.generation.conftest import make_model
from unclip_jax.generation.loading import load_stack
from unclip_jax.interop import native

pytestmark = pytest.mark.slow
Z = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)


def write(folder, part, component):
    native.write_part(folder, part, component.config, component.params, component.meta)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, resized):
    """An export whose decoder is guided by another of the same shape."""
    path = tmp_path_factory.mktemp("guided")
    write(path, "decoder", resized("decoder", seed=3))
    write(path, native.GUIDE, resized("decoder", seed=4))
    return path


def draw(folder, guidance, tokenizer):
    read = dataclasses.replace(load_stack(folder), tokenizer=tokenizer)
    model = make_model(read)
    return model.decode(Z, None, guidance=guidance, steps=2, seed=1).astype(int)


def test_the_weaker_model_takes_the_place_of_the_unconditional_one(
    folder, tmp_path, resized, stack
):
    plain = tmp_path / "plain"
    write(plain, "decoder", resized("decoder", seed=3))
    alone = draw(plain, 1.0, stack.tokenizer)
    # at 1 there is nothing of it, at 0 nothing but it
    assert np.abs(draw(folder, 1.0, stack.tokenizer) - alone).max() <= 1
    write(plain, "decoder", resized("decoder", seed=4))
    weaker = draw(plain, 1.0, stack.tokenizer)
    assert np.abs(draw(folder, 0.0, stack.tokenizer) - weaker).max() <= 1
    assert np.abs(alone - weaker).max() > 10
    guided = draw(folder, 3.0, stack.tokenizer)
    assert np.abs(guided - alone).max() > 10


def test_another_model_is_refused(folder, resized, tmp_path):
    write(tmp_path, "decoder", resized("decoder", seed=3))
    write(tmp_path, native.GUIDE, resized("decoder", seed=3, channels=16))
    with pytest.raises(ValueError, match="is another model than its decoder"):
        load_stack(tmp_path)
