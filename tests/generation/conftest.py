"""A tiny random unCLIP: every part, no training."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.configs import TOWERS
from tests.environment import one_device
from unclip_jax import models
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.loading import Stack
from unclip_jax.interop import components

SHARED = {"embed_dim": 8, "vocab_size": 30, "context_length": 6, "eot_id": 29}
DIFFUSION = {"schedule": "cosine", "num_steps": 20}
CONFIGS = {
    "clip": {"model": {**SHARED, **TOWERS}},
    "prior": {
        "model": {**SHARED, "width": 8, "depth": 1, "num_heads": 2},
        "diffusion": {**DIFFUSION, "prediction": "x0"},
        "embedding": "standardize",
    },
    "ar_prior": {
        "model": {
            **SHARED,
            "width": 8,
            "depth": 1,
            "num_heads": 2,
            "context": 12,
            "text_width": 8,
            "text_depth": 1,
            "text_heads": 2,
            "num_components": 5,
            "num_buckets": 8,
        },
        "embedding": "standardize",
    },
    "decoder": {
        "model": {
            **SHARED,
            "image_size": 8,
            "channels": 8,
            "channel_mult": [1],
            "num_res_blocks": 1,
            "attention_resolutions": [8],
            "text_width": 8,
            "text_depth": 1,
            "text_heads": 2,
            "head_channels": 8,
            "norm_groups": 4,
        },
        "diffusion": {**DIFFUSION, "prediction": "epsilon"},
        "embedding": "standardize",
    },
}


@dataclasses.dataclass
class WordTokenizer:
    """An id per word, enough to tell prompts apart; the real one's interface."""

    vocab_size: int = 30
    context_length: int = 6
    eot_id: int = 29

    def encode(self, texts):
        rows = np.full((len(texts), self.context_length), self.eot_id, np.int32)
        rows[:, 0] = 28
        for row, text in zip(rows, texts, strict=True):
            ids = [sum(map(ord, word)) % 28 for word in text.split()]
            ids = ids[: self.context_length - 2]
            row[1 : 1 + len(ids)] = ids
        return rows


def random_part(kind, seed=0, num_steps=20, **fields):
    config = {**CONFIGS[kind], "model": {**CONFIGS[kind]["model"], **fields}}
    if "diffusion" in config:
        config["diffusion"] = {**config["diffusion"], "num_steps": num_steps}
    module = models.build(kind, config["model"])
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name == "space/std":
            return np.full(shape.shape, 1.5, np.float32)
        if name in ("codebook/edges", "codebook/centres"):
            row = np.linspace(-2, 2, shape.shape[1], dtype=np.float32)
            return np.broadcast_to(row, shape.shape)
        fan_in = max(1, np.prod(shape.shape[:-1]))
        gain = 2.0 if "prior" in kind else 0.5  # conditions must act, pictures vary
        draws = rng.normal(size=shape.shape, scale=gain / np.sqrt(fan_in))
        return draws.astype(np.float32)

    params = jax.tree_util.tree_map_with_path(
        draw, components.param_shapes(kind, module)
    )
    meta = {"clip_fingerprint": "tiny"}
    return components.build_component(kind, config, params, meta, where=f"tiny {kind}")


@pytest.fixture(scope="session")
def stack():
    read = {kind: random_part(kind, i) for i, kind in enumerate(CONFIGS)}
    return Stack("exports/tiny", read, WordTokenizer())


@pytest.fixture(scope="session")
def resized():
    """(kind, **model fields) -> a random part."""
    return random_part


def make_model(stack):
    """UnCLIP on one device; all batches have 8 rows: one program of each kind."""
    model = UnCLIP(stack, one_device(), batch_size=8)
    runner = model.pipeline._runner
    pad = runner.place
    runner.place = lambda rows, total: pad(rows)
    return model


@pytest.fixture(scope="session")
def model(stack):
    return make_model(stack)


@pytest.fixture(scope="session")
def images():
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
