"""Compact records, and what an unfinished folder holds."""

import json

import numpy as np
import pytest

from unclip_jax.data import record_files
from unclip_jax.data import records as records_module
from unclip_jax.data.records import RecordReader
from unclip_jax.data.sources import BadRecord


def test_compact_records_are_half_the_size_and_read_alike(
    make_writer, examples, tmp_path
):
    for name, compact in (("whole", False), ("compact", True)):
        writer = make_writer(tmp_path / name, num_shards=1, compact=compact)
        several = dict(examples[1], captions=["a", "b"])
        several["clip_text"] = np.stack([examples[1]["clip_text"], np.ones(6, "f4")])
        several["tokens"] = np.stack([examples[1]["tokens"], examples[2]["tokens"]])
        writer.write_shard(0, [examples[0], several, *examples[2:]])
        assert writer.finish()["version"] == 1 + compact
    whole, compact = (RecordReader(tmp_path / name) for name in ("whole", "compact"))
    assert compact.arrays == whole.arrays
    names = ["tokens", "clip_image", "clip_text"]
    rows = np.arange(len(examples))
    for which in (rows, None):
        for a, b in zip(
            whole.read_batch(rows, names, which),
            compact.read_batch(rows, names, which),
            strict=True,
        ):
            for name in names:
                assert a[name].dtype == b[name].dtype
                rounded = a[name]
                if name != "tokens":
                    rounded = rounded.astype(np.float16).astype(np.float32)
                np.testing.assert_array_equal(b[name], rounded)
    z = np.stack([e["clip_image"] for e in examples]).astype(np.float16)
    np.testing.assert_allclose(compact.statistics["mean"], z.mean(0, dtype=float))
    with pytest.raises(FileExistsError, match="version was 2, now 1"):
        make_writer(tmp_path / "compact", num_shards=1)


@pytest.mark.parametrize(
    "tokens", [[5], [1, 2, 3], [1, 2, 0, 0], [0, 0, 0], [70000, 1, 1, 1], [1, 0, 0, 1]]
)
def test_tokens_without_padding_are_whole_again(tokens):
    tokens = np.array([tokens, tokens[::-1]], np.int32)
    packed = records_module.pack_tokens(tokens)
    data = records_module._unpack_tokens(packed, tokens.shape[1], "key")
    assert data == tokens.tobytes()
    for damaged in (b"", [b"u2"], [7], 3, [b"u2x"]):
        with pytest.raises(BadRecord, match="tokens are damaged"):
            records_module._unpack_tokens(damaged or [b""], 4, "key")


def test_unfinished_records_keep_one_file_of_sums_per_process(
    make_writer, examples, records, tmp_path
):
    for process in (0, 1):
        writer = make_writer(tmp_path, num_shards=10, process=process)
        for i in range(process, 10, 2):
            writer.write_shard(i, examples[5 * i : 5 * i + 5])
    unfinished = tmp_path / record_files.UNFINISHED
    assert len(list(unfinished.glob("*.npz"))) == 2
    # shards and their sums as older versions marked them
    done, (sums, _) = record_files.read_done(tmp_path)
    with np.load(sums) as state:
        older = {name: record_files._square(state[name]) for name in state}
    np.savez(unfinished / "00000.npz", **older)
    for number, i in enumerate(range(0, 10, 2)):
        (unfinished / f"{i:05d}.json").write_text(json.dumps(done[i]))
        if number:
            np.savez(
                unfinished / f"{i:05d}.npz", **{k: 0 * v for k, v in older.items()}
            )
    sums.unlink()
    (unfinished / "process-00000.json").unlink()
    assert make_writer(tmp_path, num_shards=10).finished_shards() == set(range(10))
    make_writer(tmp_path, num_shards=10).finish()
    expected = RecordReader(records).statistics
    for name, value in RecordReader(tmp_path).statistics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-12)
