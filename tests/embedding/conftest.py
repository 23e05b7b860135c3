"""A tiny CLIP with random weights and its tokenizer, for the tests of this room."""

import jax
import numpy as np
import pytest

from tests.configs import TOWERS
from unclip_jax import models
from unclip_jax.embedding.frozen_clip import FrozenCLIP
from unclip_jax.interop import components
from unclip_jax.tokenizer import train_tokenizer

SHARED = {"embed_dim": 8, "vocab_size": 514, "context_length": 6, "eot_id": 513}
CONFIG = {"model": {**SHARED, **TOWERS}}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tokenizer"
    return train_tokenizer(["a"], folder, 514, context_length=6), folder


@pytest.fixture(scope="session")
def params():
    shapes = components.param_shapes("clip", models.build("clip", CONFIG["model"]))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: rng.normal(size=s.shape, scale=0.3).astype(np.float32), shapes
    )


@pytest.fixture(scope="session")
def clip(tokenizer, params):
    part = components.build_component("clip", CONFIG, params, {}, where="tiny clip")
    return FrozenCLIP(part, tokenizer[0], batch_size=4)
