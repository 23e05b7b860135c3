"""Tiny records of icons with embeddings that say which example they belong to."""

import numpy as np
import pytest

from unclip_jax.data.record_writer import RecordWriter
from unclip_jax.data.sources.icons import Icons
from unclip_jax.tokenizer import train_tokenizer

COUNT, WIDTH, LENGTH, SHARDS = 50, 6, 12, 3


@pytest.fixture(scope="session")
def icons():
    return Icons(nouns=6, colours=4, backgrounds=4, image_size=16, num_examples=COUNT)


@pytest.fixture(scope="session")
def tokenizer(icons):
    return train_tokenizer(icons.captions(), None, 600, LENGTH)


@pytest.fixture(scope="session")
def examples(icons, tokenizer):
    """What a runner hands to the writer: `clip_image[0]` is the example's number."""
    random = np.random.default_rng(0)
    out = []
    for i, icon in enumerate(icons):
        tokens = tokenizer.encode([icon["caption"]])[0]
        image, text = random.normal(size=(2, WIDTH)).astype(np.float32) + 3
        image[0] = text[0] = i
        picked = {name: icon[name] for name in ("key", "caption", "image")}
        out.append({**picked, "tokens": tokens, "clip_image": image, "clip_text": text})
    return out


@pytest.fixture(scope="session")
def make_writer(icons, tokenizer):
    def make(folder, **changes):
        vector = ("float32", (WIDTH,))
        arrays = {
            "tokens": ("int32", (LENGTH,)),
            "clip_image": vector,
            "clip_text": vector,
        }
        options = dict(
            num_shards=SHARDS,
            image_size=16,
            arrays=arrays,
            tokenizer=tokenizer,
            source_fingerprint=icons.fingerprint,
            clip_fingerprint="a-clip",
        )
        return RecordWriter(folder, **{**options, **changes})

    return make


@pytest.fixture(scope="session")
def write_records(make_writer, examples):
    """write_records(folder): a finished folder of all examples."""

    def write(folder):
        writer = make_writer(folder)
        size = -(-COUNT // SHARDS)
        for i in range(SHARDS):
            writer.write_shard(i, examples[i * size : (i + 1) * size])
        writer.finish()
        return folder

    return write


@pytest.fixture(scope="session")
def records(write_records, tmp_path_factory):
    """A finished folder; not to be changed."""
    return write_records(tmp_path_factory.mktemp("data") / "records")


@pytest.fixture
def own_records(write_records, tmp_path):
    """A finished folder that a test may break."""
    return write_records(tmp_path / "records")
