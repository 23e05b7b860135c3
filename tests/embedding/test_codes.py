"""What codes.json says of embeddings whose errors are known."""

import json

import numpy as np
import pytest

from unclip_jax.data.record_writer import RecordWriter
from unclip_jax.embedding import codes
from unclip_jax.tokenizer import train_tokenizer

RNG = np.random.default_rng(0)
TURN = np.linalg.qr(RNG.standard_normal((400, 400)))[0]


@pytest.mark.slow
def test_wide_embeddings_keep_319_components():
    """320 equal variances and 80 small ones: exactly one large one is dropped."""
    scale = np.array([1.0] * 320 + [1e-3] * 80)
    z = RNG.standard_normal((6000, 400)) * scale @ TURN + 3.0
    found = codes.measure(z)
    sizes = found["dim"], found["components"], found["buckets"], found["examples"]
    assert sizes == (400, 319, 1024, 6000)
    assert found["pca_error"] == pytest.approx(1 / 320, rel=0.2)
    assert found["pca_error"] < found["error"] < 0.02
    assert 310 < found["components_for_1_percent"] < 318  # samples are not even
    assert 0.99 < found["cosine"] < 1


def test_narrow_embeddings_lose_only_what_the_buckets_do():
    z = RNG.standard_normal((4000, 6))
    found = codes.measure(z)
    assert (found["components"], found["components_for_1_percent"]) == (6, 6)
    assert abs(found["pca_error"]) < 1e-5 < found["error"] < 0.01
    few = codes.measure(z[:40])
    assert few["buckets"] == 20 and few["error"] > found["error"]
    flat = codes.measure(z[:, :2] @ RNG.standard_normal((2, 6)))
    assert (flat["components"], flat["components_for_1_percent"]) == (2, 2)


def test_records_get_a_file_once(tmp_path):
    tokenizer = train_tokenizer(["a"], tmp_path / "tokenizer", 514, context_length=6)
    arrays = {name: ("float32", (4,)) for name in ("clip_image", "clip_text")}
    writer = RecordWriter(
        tmp_path / "records",
        num_shards=1,
        image_size=4,
        arrays=arrays,
        tokenizer=tokenizer,
        source_fingerprint="random",
        clip_fingerprint="a clip",
    )
    z = RNG.standard_normal((100, 4)).astype(np.float32)
    image = np.zeros((4, 4, 3), np.uint8)
    writer.write_shard(
        0,
        [
            {"key": str(i), "caption": "a", "image": image, **dict.fromkeys(arrays, x)}
            for i, x in enumerate(z)
        ],
    )
    writer.finish()
    said = codes.report(tmp_path / "records")
    assert said.startswith("4 of 4 principal components in 50 buckets lose ")
    file = tmp_path / "records" / codes.CODES
    assert json.loads(file.read_text()) == codes.measure(z.astype(np.float64))
    written = file.stat().st_mtime_ns
    assert codes.report(tmp_path / "records") == said
    assert file.stat().st_mtime_ns == written
