"""A folder of transformers' CLIPModel: its side files and weights."""

import jax
import numpy as np

from tests.random_params import random_params
from unclip_jax import models
from unclip_jax.generation.loading import load_stack
from unclip_jax.interop import components, public_clip
from unclip_jax.tokenizer import train_tokenizer


def make(folder):
    """A tiny CLIP with its tokenizer, as `export --format=transformers` writes it."""
    captions = ["a red heart on a white background", "a blue star"]
    source = folder.with_name("tokenizer")
    tokenizer = train_tokenizer(captions, source, 540, 12)
    tower = {"width": 16, "depth": 1, "heads": 2}
    fields = {"embed_dim": 16, "image_size": 28, "patch_size": 14}
    for name in ("text", "vision"):
        fields |= {f"{name}_{key}": value for key, value in tower.items()}
    fields |= {
        "vocab_size": tokenizer.vocab_size,
        "context_length": 12,
        "eot_id": tokenizer.eot_id,
    }
    shapes = components.param_shapes("clip", models.build("clip", fields))
    params = jax.tree.map(np.asarray, random_params(shapes))
    part = components.build_component("clip", {"model": fields}, params, {}, where="it")
    public_clip.write_public_clip(folder, part, source, "transformers")


def open_it(folder):
    """What the model is, and tokens of a caption."""
    stack = load_stack(folder)
    part = stack.parts["clip"]
    sums = [float(np.asarray(leaf).sum()) for leaf in jax.tree.leaves(part.params)]
    return [str(part.module), sums, stack.tokenizer.encode(["a red star"])]
