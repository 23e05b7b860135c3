"""clip-retrieval's embeddings become records that a prior trains on."""

import dataclasses

import jax
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from unclip_jax import models, stages
from unclip_jax.data.loader import open_data
from unclip_jax.data.sources import BadRecord, make_source
from unclip_jax.embedding import runner
from unclip_jax.embedding.frozen_clip import FrozenCLIP
from unclip_jax.interop import components
from unclip_jax.tokenizer import train_tokenizer

COUNT, PARTS = 12, 2
MODEL = dict(
    embed_dim=8,
    vocab_size=514,
    context_length=6,
    eot_id=513,
    image_size=8,
    patch_size=4,
    vision_width=8,
    vision_depth=1,
    vision_heads=2,
    text_width=8,
    text_depth=1,
    text_heads=2,
)


@pytest.fixture(scope="module")
def clip():
    shapes = components.param_shapes("clip", models.build("clip", MODEL))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(size=s.shape, scale=0.3).astype(np.float32), shapes
    )
    part = components.build_component(
        "clip", {"model": MODEL}, params, {}, where="tiny clip"
    )
    tokenizer = train_tokenizer(["a"], None, 514, context_length=6)
    return FrozenCLIP(part, tokenizer, batch_size=8)


@pytest.fixture
def folder(tmp_path, clip):
    """What clip-retrieval writes: float16 of norm 1, two parts."""
    rng = np.random.default_rng(1)
    captions = [f"word {i}" for i in range(PARTS * COUNT)]
    tokens = clip.tokenizer.encode(captions)
    text = np.concatenate(
        [np.asarray(clip.embed_text(t)["clip_text"]) for t in np.split(tokens, 3)]
    )
    image = rng.normal(size=text.shape)
    for name in ("img_emb", "text_emb", "metadata"):
        (tmp_path / name).mkdir()
    for part in range(PARTS):
        mine = slice(part * COUNT, (part + 1) * COUNT)
        for name, rows in (("img_emb", image), ("text_emb", text)):
            unit = rows[mine] / np.linalg.norm(rows[mine], axis=1, keepdims=True)
            np.save(tmp_path / name / f"{name}_{part}.npy", unit.astype(np.float16))
        columns = {
            "image_path": [f"{i:06d}" for i in range(mine.start, mine.stop)],
            "caption": captions[mine],
        }
        file = tmp_path / "metadata" / f"metadata_{part}.parquet"
        parquet.write_table(pa.table(columns), file)
    return tmp_path


def source(folder):
    return make_source({"source": "clip_retrieval", "path": str(folder)})


def test_records_without_images_train_a_prior(folder, tmp_path, clip):
    data = source(folder)
    assert len(data) == 24 and data.embedding_convention == "unit"
    assert data.captions(1) == ["word 0"]
    out = tmp_path / "records"
    manifest = runner.embed_source(data, out, clip, shard_size=10)
    assert manifest["image_size"] is None and manifest["num_records"] == 24
    records = open_data({"source": "records", "path": str(out), "feed": "arrays"})
    assert records.spec.embedding_convention == "unit"
    batch = records.take(24, ["clip_image", "clip_text", "tokens"])
    for i in (0, 11, 12, 23):
        saved = np.load(folder / "img_emb" / f"img_emb_{i // COUNT}.npy")
        np.testing.assert_array_equal(batch["clip_image"][i], saved[i % COUNT])
    tokens = clip.tokenizer.encode(records.captions(8))
    expected = np.asarray(clip.embed_text(tokens)["clip_text"])
    np.testing.assert_allclose(batch["clip_text"][:8], expected, atol=1e-5)  # raw
    assert records.source[13]["key"] == "000013"
    with pytest.raises(ValueError, match="no 'image'"):
        records.batches(["image"], 0, 4)
    config = stages.StageConfig(
        stage="prior",
        data={"source": "records"},
        model={"width": 8, "depth": 1, "num_heads": 2},
        stage_options={"embedding": "unit_scaled"},
    )
    stage = stages.make_stage(config, records.spec)
    assert set(stage.batch_spec) <= set(records.shapes)
    jax.eval_shape(stage.init, jax.random.key(0))
    config = dataclasses.replace(config, stage_options={"embedding": "standardize"})
    with pytest.raises(ValueError, match="set stage_options.embedding='unit_scaled'"):
        stage = stages.make_stage(config, records.spec)
        jax.eval_shape(stage.init, jax.random.key(0))


def test_embeddings_of_another_clip_are_refused(folder, tmp_path, clip):
    file = folder / "text_emb" / "text_emb_0.npy"
    np.save(file, -np.load(file))
    with pytest.raises(ValueError, match="not those of config.clip: mean cosine"):
        runner.embed_source(source(folder), tmp_path / "r", clip, shard_size=10)


def test_misaligned_parts_are_refused_with_their_numbers(folder):
    file = folder / "img_emb" / "img_emb_1.npy"
    whole = np.load(file)
    np.save(file, whole[:-1])
    with pytest.raises(ValueError, match="part 1 .*img_emb 11, text_emb 12, metadata"):
        source(folder)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="img_emb_1.npy is damaged"):
        source(folder)
    file.unlink()
    with pytest.raises(ValueError, match="img_emb has 1 parts and text_emb 2.*1"):
        source(folder)
    (folder / "img_emb" / "img_emb_0.npy").unlink()
    with pytest.raises(FileNotFoundError, match="no output of clip-retrieval"):
        source(folder)


def test_what_is_not_finite_is_left_out(folder, tmp_path, clip):
    file = folder / "img_emb" / "img_emb_0.npy"
    rows = np.load(file)
    rows[3, 2] = np.nan
    np.save(file, rows)
    with pytest.raises(BadRecord, match="'000003'.*image embedding is not finite"):
        source(folder)[3]
    manifest = runner.embed_source(source(folder), tmp_path / "r", clip, shard_size=9)
    assert [bad["key"] for bad in manifest["skipped"]] == ["000003"]


def test_another_width_is_refused(folder, tmp_path, clip):
    for file in folder.rglob("*.npy"):
        np.save(file, np.load(file)[:, :4])
    with pytest.raises(ValueError, match="have 4 numbers, config.clip makes 8"):
        runner.embed_source(source(folder), tmp_path / "r", clip, shard_size=9)
