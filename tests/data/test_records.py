"""Records: what goes in comes out; shards whole or absent; damage is named."""

import json
import os

import msgpack
import numpy as np
import pytest

from unclip_jax.data import record_files, verified
from unclip_jax.data.records import RecordReader, decode_image, encode_image
from unclip_jax.data.sources import BadRecord, make_source
from unclip_jax.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def bad_rows(batch):
    return [row for row, example in enumerate(batch) if isinstance(example, BadRecord)]


def test_what_goes_in_comes_out(records, examples):
    reader = RecordReader(records)
    assert len(reader) == len(examples)
    for i in (0, 16, 17, 33, 34, 49):  # both sides of each shard's end
        got, wanted = reader[i], examples[i]
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert np.array_equal(got[name], value), name
            if isinstance(value, np.ndarray):
                assert got[name].dtype == value.dtype
    assert reader.captions(3) == [e["caption"] for e in examples[:3]]
    assert len(list(reader)) == len(examples)
    with pytest.raises(IndexError):
        reader[50]
    reader.verify()


def test_a_batch_is_its_examples_one_by_one(make_writer, examples, tmp_path):
    """In any order, over several shards, of one caption or of several."""
    writer = make_writer(tmp_path, num_shards=2)
    several = []
    for i, example in enumerate(examples[:20]):
        count = 1 + i % 3
        texts = np.stack([example["clip_text"] + j for j in range(count)])
        tokens = np.stack([example["tokens"] + j for j in range(count)])
        if count > 1:
            example = example | {"captions": ["a"] * count, "clip_text": texts}
            example["tokens"] = tokens
        several.append(example)
    writer.write_shard(0, several[:8])
    writer.write_shard(1, several[8:])
    writer.finish()
    reader, names = RecordReader(tmp_path), ["image", "tokens", "clip_text"]
    indices, captions = np.random.default_rng(0).integers(0, 20, (2, 64))
    batch = reader.read_batch(indices, names, captions)
    assert bad_rows(batch) == []
    for row, (i, caption) in enumerate(zip(indices, captions, strict=True)):
        for name, value in reader.read_batch([i], names, [caption])[0].items():
            assert np.array_equal(batch[row][name], value)
            assert batch[row][name].dtype == value.dtype
            wanted = several[i][name]
            if name != "image" and i % 3:
                wanted = wanted[caption % (1 + i % 3)]
            assert np.array_equal(value, wanted)
    every = reader.read_batch(indices, names)
    for row, i in enumerate(indices):
        shape = (1 + i % 3, *several[0]["tokens"].shape)
        assert np.array_equal(every[row]["tokens"], several[i]["tokens"].reshape(shape))


def test_the_manifest_says_what_is_in_it(records, icons, tokenizer, examples):
    manifest = json.loads((records / "manifest.json").read_text())
    assert manifest["format"] == "unclip_jax-records" and manifest["version"] == 1
    assert manifest["num_records"] == sum(s["count"] for s in manifest["shards"]) == 50
    assert manifest["embed_dim"] == 6 and manifest["image_size"] == 16
    assert manifest["embedding_convention"] == "raw"
    assert manifest["clip_fingerprint"] == "a-clip"
    assert manifest["source_fingerprint"] == icons.fingerprint
    assert manifest["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert manifest["context_length"] == 12 and manifest["skipped"] == []
    assert manifest["vocab_size"] == tokenizer.vocab_size
    assert manifest["eot_id"] == tokenizer.eot_id
    kept = Tokenizer.load(records / "tokenizer")
    assert kept.fingerprint == tokenizer.fingerprint and kept.context_length == 12
    files = {file.name for file in records.iterdir()}
    shards = {f"shard-{i:05d}-of-00003.array_record" for i in range(3)}
    assert files == shards | {"manifest.json", "statistics.npz", "tokenizer"}


def test_statistics_are_those_of_clip_image(records, examples):
    x = np.stack([e["clip_image"] for e in examples]).astype(np.float64)
    statistics = RecordReader(records).statistics
    assert statistics["count"] == 50
    assert all(value.dtype in (np.float64, np.int64) for value in statistics.values())
    np.testing.assert_allclose(statistics["mean"], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics["cov"], np.cov(x.T), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(statistics["std"], x.std(0, ddof=1), rtol=1e-9)
    norms = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(statistics["mean_norm"], norms.mean(), rtol=1e-12)
    unit = x / norms[:, None]
    np.testing.assert_allclose(statistics["unit_mean"], unit.mean(0), rtol=1e-9)
    np.testing.assert_allclose(statistics["unit_cov"], np.cov(unit.T), atol=1e-12)


def test_writing_goes_on_after_a_stop(make_writer, examples, records, tmp_path):
    folder = tmp_path / "records"
    writer = make_writer(folder)
    assert writer.finished_shards() == set()
    writer.write_shard(1, examples[17:34])

    def dies():
        yield from examples[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write_shard(0, dies())
    assert not list(folder.glob("*.partial")) and len(list(folder.glob("shard-*"))) == 1
    with pytest.raises(ValueError, match="2 of 3 shards are not written"):
        writer.finish()
    with pytest.raises(FileNotFoundError, match=r"unfinished \(1 of 3 shards\)"):
        RecordReader(folder)

    again = make_writer(folder)
    assert again.finished_shards() == {1}
    again.write_shard(2, examples[34:])
    again.write_shard(0, examples[:17])
    manifest = again.finish()
    whole = RecordReader(records)
    assert manifest["fingerprint"] == whole.fingerprint  # as if never stopped
    for i in range(3):
        name = f"shard-{i:05d}-of-00003.array_record"
        assert (folder / name).read_bytes() == (records / name).read_bytes()
    done = make_writer(folder)
    assert done.is_finished() and done.finished_shards() == {0, 1, 2}
    assert done.finish() == manifest


def test_a_shard_that_lost_its_end_is_written_again(make_writer, examples, tmp_path):
    writer = make_writer(tmp_path)
    writer.write_shard(0, examples[:17])
    shard = tmp_path / "shard-00000-of-00003.array_record"
    os.truncate(shard, 1000)
    assert writer.finished_shards() == set()


def test_what_was_skipped_is_named(make_writer, examples, tmp_path):
    writer = make_writer(tmp_path / "records")
    skipped = []

    def readable(part, bad):
        for example in part:
            if example["key"] in bad:
                skipped.append(BadRecord(example["key"], "torn"))
            else:
                yield example

    bad = {examples[3]["key"], *(e["key"] for e in examples[34:])}
    assert writer.write_shard(0, readable(examples[:17], bad), skipped) == 16
    writer.write_shard(1, examples[17:34])
    skipped = []
    assert writer.write_shard(2, readable(examples[34:], bad), skipped) == 0
    manifest = writer.finish()
    assert [entry["key"] for entry in manifest["skipped"]] == [
        e["key"] for e in examples if e["key"] in bad
    ]
    assert manifest["skipped"][0]["reason"] == "torn"
    reader = RecordReader(tmp_path / "records")
    assert len(reader) == 33
    assert reader[3]["key"] == examples[4]["key"]
    assert reader[32]["key"] == examples[33]["key"]


def test_another_content_is_refused(make_writer, examples, own_records, tmp_path):
    before = {f.name: f.stat().st_mtime_ns for f in own_records.iterdir()}
    for change in (
        dict(clip_fingerprint="another"),
        dict(source_fingerprint="another"),
        dict(num_shards=4),
        dict(extra={"note": 1}),
    ):
        with pytest.raises(FileExistsError, match=next(iter(change))):
            make_writer(own_records, **change)
    assert before == {f.name: f.stat().st_mtime_ns for f in own_records.iterdir()}
    begun = tmp_path / "begun"
    make_writer(begun)
    with pytest.raises(FileExistsError, match="made otherwise"):
        make_writer(begun, image_size=32)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        make_writer(full)
    assert [f.name for f in full.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("clip_image", np.zeros(5, np.float32), r"clip_image is float32 \(5,\)"),
        ("clip_text", np.zeros(6, np.float64), "clip_text is float64"),
        ("clip_text", np.full(6, np.nan, np.float32), "clip_text is not finite"),
        ("tokens", np.zeros(11, np.int32), "tokens is int32"),
        ("image", np.zeros((8, 8, 3), np.uint8), "image is uint8"),
        ("image", b"\x89PNG not really", "image is damaged"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(
    make_writer, examples, tmp_path, name, value, message
):
    writer = make_writer(tmp_path)
    with pytest.raises(ValueError, match=message):
        writer.write_shard(0, [examples[0], {**examples[1], name: value}])
    assert writer.finished_shards() == set()
    assert not list(tmp_path.glob("shard-*"))


def test_options_that_do_not_fit_are_refused(make_writer, tmp_path):
    vector = ("float32", (6,))
    with pytest.raises(ValueError, match="one width"):
        arrays = {"clip_image": vector, "clip_text": ("float32", (7,))}
        make_writer(tmp_path / "a", arrays=arrays)
    with pytest.raises(ValueError, match="the tokenizer's"):
        make_writer(tmp_path / "b", arrays={"tokens": ("int32", (13,))})
    with pytest.raises(ValueError, match="clip_fingerprint"):
        make_writer(tmp_path / "c", clip_fingerprint=None)
    with pytest.raises(ValueError, match="num_shards"):
        make_writer(tmp_path / "d", num_shards=0)
    assert not any(tmp_path.iterdir())


def test_jpeg_bytes_are_kept_as_they_are(make_writer, examples, tmp_path):
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(examples[0]["image"]).save(out, "JPEG", quality=95)
    writer = make_writer(tmp_path, num_shards=1)
    writer.write_shard(0, [{**examples[0], "image": out.getvalue()}])
    writer.finish()
    got = RecordReader(tmp_path)[0]["image"]
    assert np.array_equal(got, decode_image(out.getvalue(), 16))
    assert np.abs(got.astype(int) - examples[0]["image"]).mean() < 20


def test_records_without_embeddings(make_writer, examples, tmp_path):
    arrays = {"tokens": ("int32", (12,))}
    writer = make_writer(tmp_path, num_shards=1, arrays=arrays, clip_fingerprint=None)
    writer.write_shard(0, examples[:4])
    writer.finish()
    reader = RecordReader(tmp_path)
    assert reader.statistics is None and set(reader.arrays) == {"tokens"}
    assert len(reader) == 4


def test_missing_and_truncated_shards_are_named(own_records):
    shard = own_records / "shard-00001-of-00003.array_record"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="shard-00001-of-00003.*truncated"):
        make_source({"source": "records", "path": str(own_records)})
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="shard-00001-of-00003.*missing"):
        RecordReader(own_records)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\3\4 cut", None])
def test_damaged_statistics_are_named(own_records, content):
    file = own_records / "statistics.npz"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match="statistics.npz is missing or damaged"):
        RecordReader(own_records)


def test_folders_that_are_no_records_are_refused(own_records, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist.*unclip_jax.embed"):
        make_source({"source": "records", "path": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="lacks 'path'"):
        make_source({"source": "records"})
    with pytest.raises(FileNotFoundError, match="no manifest"):
        RecordReader(tmp_path)
    manifest = own_records / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"a-clip"', '"another-clip"'))
    with pytest.raises(ValueError, match="changed after it was written"):
        RecordReader(own_records)
    manifest.write_text(text.replace('"version": 1', '"version": 3'))
    with pytest.raises(ValueError, match="this code reads"):
        RecordReader(own_records)
    for damaged in (text[:100], "[1]", "{}", 100_000 * "["):
        manifest.write_text(damaged)
        with pytest.raises(ValueError, match="not a manifest"):
            RecordReader(own_records)


def test_damaged_bytes_are_a_bad_record_and_verify_finds_them(own_records):
    shard = own_records / "shard-00000-of-00003.array_record"
    data = bytearray(shard.read_bytes())
    data[3000] ^= 0xFF  # inside some record: the file's rest is padding
    shard.write_bytes(bytes(data))
    reader = RecordReader(own_records)
    with pytest.raises(ValueError, match="shard-00000-of-00003"):
        reader.verify()
    bad = []
    for i in range(len(reader)):
        try:
            reader[i]
        except BadRecord as error:
            assert error.key.startswith("shard-00000") and error.reason
            bad.append(i)
    assert 1 <= len(bad) <= 2
    batch = reader.read_batch(np.arange(50), ["clip_text"], np.zeros(50, int))
    assert bad_rows(batch) == bad  # they are read together, but fail alone
    for row in set(range(50)) - set(bad):
        wanted = reader[row]["clip_text"]
        assert np.array_equal(batch[row]["clip_text"], wanted)


def other_shard(shard, change):
    """Writes the records of a shard, changed, over it; of the same size."""
    reader = record_files.open_shard(shard)
    records = [reader.read([i])[0] for i in range(reader.num_records())]
    size = shard.stat().st_size
    record_files.write_shard(shard, change(records))
    assert shard.stat().st_size == size  # the format pads: sizes tell nothing


def with_nan(records):
    first = msgpack.unpackb(records[0])
    embedding = np.frombuffer(first["clip_image"], "<f4").copy()
    embedding[0] = np.nan
    return [msgpack.packb(first | {"clip_image": embedding.tobytes()}), *records[1:]]


def swapped(records):
    a, b, *rest = map(msgpack.unpackb, records)
    a["clip_image"], b["clip_image"] = b["clip_image"], a["clip_image"]
    return [msgpack.packb(record) for record in (a, b, *rest)]


@pytest.mark.parametrize("change", [lambda r: r[::-1], with_nan, swapped])
def test_a_shard_of_other_records_is_refused_though_its_size_is_the_same(
    own_records, change
):
    RecordReader(own_records)
    shard = own_records / "shard-00001-of-00003.array_record"
    other_shard(shard, change)
    for _ in range(2):  # what is wrong is not remembered as right
        with pytest.raises(ValueError, match="shard-00001-of-00003.* other records"):
            RecordReader(own_records)


def test_shards_are_hashed_once(own_records, monkeypatch):
    hashed = []
    sha256_file = verified.files.sha256_file
    monkeypatch.setattr(
        verified.files,
        "sha256_file",
        lambda path: hashed.append(path.name) or sha256_file(path),
    )
    RecordReader(own_records)
    assert len(hashed) == 3
    RecordReader(own_records)
    assert len(hashed) == 3
    os.utime(own_records / hashed[0])  # a copy, for instance
    RecordReader(own_records)
    assert hashed[3:] == hashed[:1]
    os.utime(own_records / hashed[0], (1, 1))
    monkeypatch.setattr(verified.check_shards, "__defaults__", (10,))
    with pytest.warns(UserWarning, match="are not compared with their hashes"):
        reader = RecordReader(own_records)
    assert len(hashed) == 4
    reader.verify()
    RecordReader(own_records)  # without a warning
    assert len(hashed) == 7


def test_without_a_home_shards_are_hashed_again(own_records, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    RecordReader(own_records)
    RecordReader(own_records)


def test_records_that_are_away_are_not_damaged(own_records, tmp_path, monkeypatch):
    reader = RecordReader(own_records)
    reader[0]  # its shard is open

    def refuse(_):
        raise RuntimeError("read failed")

    shard = reader._readers[0]
    monkeypatch.setattr(shard, "read", refuse)
    own_records.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="shard-00000"):
        reader.read_batch([0, 1], ["tokens"])
    (tmp_path / "away").rename(own_records)
    assert bad_rows(reader.read_batch([0, 1, 30], ["tokens"])) == [0, 1]
    monkeypatch.undo()
    assert bad_rows(reader.read_batch([0, 1, 30], ["tokens"])) == []


def test_rows_whose_bytes_are_wrong_are_told_apart(records, monkeypatch):
    reader, unpackb = RecordReader(records), msgpack.unpackb
    broken = {3: {"image": b"GIF89a"}, 5: {"clip_text": b"1234"}, 8: {"caption": None}}

    def unpack(data):
        record = unpackb(data)
        i = int(np.frombuffer(record["clip_image"], "<f4")[0])
        return record | broken.get(i, {})

    monkeypatch.setattr(msgpack, "unpackb", unpack)
    indices = np.arange(49, -1, -1)
    batch = reader.read_batch(indices, ["image", "clip_text"], np.zeros(50, int))
    bad = bad_rows(batch)
    assert indices[bad].tolist() == [8, 5, 3]
    for i in broken:
        assert bad_rows(reader.read_batch([i], ["image", "clip_text"])) == [0]
    for row in set(range(50)) - set(bad):
        (wanted,) = reader.read_batch([indices[row]], ["image", "clip_text"], [0])
        assert all(np.array_equal(batch[row][n], wanted[n]) for n in wanted)


def test_a_shard_that_is_no_array_record_is_refused(own_records):
    shard = own_records / "shard-00000-of-00003.array_record"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(ValueError, match="shard-00000-of-00003"):
        RecordReader(own_records)[0]


def test_png_keeps_every_pixel():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_image(image), 9), image)
    for data in (None, b"", encode_image(image)[:60], b"GIF89a"):
        with pytest.raises(BadRecord, match="'k'"):
            decode_image(data, 9, "k")
    with pytest.raises(BadRecord, match="not 8 x 8"):
        decode_image(encode_image(image), 8)
