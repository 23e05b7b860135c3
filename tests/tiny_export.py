"""A tiny random model on disk, with a real tokenizer."""

import pathlib

import numpy as np

from tests.generation.conftest import random_part
from unclip_jax.interop import native
from unclip_jax.tokenizer import train_tokenizer

CAPTIONS = ["a red heart", "a blue cat on teal", "the green umbrella"]


def write_export(folder: pathlib.Path, **options) -> pathlib.Path:
    """Writes all parts; `options` are of random_part. Returns the folder."""
    train_tokenizer(CAPTIONS, folder.parent / "tokenizer", 514, context_length=6)
    native.write_tokenizer(folder, folder.parent / "tokenizer")
    fingerprint = None
    for kind in native.PARTS:
        part = random_part(kind, vocab_size=514, eot_id=513, **options)
        meta = {"step": 1, "clip_fingerprint": fingerprint}
        native.write_part(folder, kind, part.config, part.params, meta)
        if fingerprint is None:  # the CLIP comes first; the others belong to it
            fingerprint = native.read_index(folder)["parts"][kind]["clip_fingerprint"]
    return folder


def write_statistics(folder: pathlib.Path) -> None:
    """Adds statistics of embeddings, which the components need."""
    native.write_statistics(folder, np.zeros(8), np.eye(8))
