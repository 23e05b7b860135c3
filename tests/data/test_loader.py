"""Batches: two feeds, any number of processes, any start: the same, bit for bit."""

import itertools
import json
import logging
import pathlib
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from unclip_jax.data import loader, order
from unclip_jax.data.loader import open_data
from unclip_jax.data.records import RecordReader
from unclip_jax.data.sources import BadRecord

NAMES = ("image", "tokens", "clip_image", "clip_text")
ICONS = dict(source="icons", nouns=6, colours=4, backgrounds=4, image_size=16)


def open_records(path, feed="arrays", **options):
    return open_data({"source": "records", "path": str(path), "feed": feed, **options})


def some(batches, n):
    return list(itertools.islice(batches, n))


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert x[name].dtype == y[name].dtype
            assert np.array_equal(x[name], y[name]), name


def test_both_feeds_give_the_same_batches(records, examples):
    feeds = [open_records(records, feed) for feed in ("tf", "arrays")]
    # 50 examples, 16 a batch: the epochs' seams fall inside batches
    a, b = (some(feed.batches(NAMES, seed=3, batch_size=16), 8) for feed in feeds)
    assert_same(a, b)
    for step, batch in enumerate(a):
        wanted = order.batch_indices(3, step, 16, 50)
        assert np.array_equal(batch["clip_image"][:, 0].astype(int), wanted)
        for row, i in enumerate(wanted):
            for name in NAMES:
                assert np.array_equal(batch[name][row], examples[i][name])
    assert a[0]["image"].shape == (16, 16, 16, 3) and a[0]["image"].dtype == np.uint8
    assert a[0]["tokens"].dtype == np.int32
    (few,) = some(feeds[0].batches(["tokens"], 3, 16), 1)
    assert list(few) == ["tokens"]


@pytest.mark.parametrize("feed", ["tf", "arrays"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_processes_rows_make_the_same_batch(records, feed, processes):
    data = open_records(records, feed)
    whole = some(data.batches(NAMES, 0, 8), 7)
    parts = [
        some(data.batches(NAMES, 0, 8, rows=np.arange(8)[first::processes]), 7)
        for first in range(processes)
    ]
    joined = [
        {
            name: np.stack([part[step][name] for part in parts], 1).reshape(
                whole[step][name].shape
            )
            for name in NAMES
        }
        for step in range(7)
    ]
    assert parts[0][0]["image"].shape[0] == 8 // processes
    assert_same(joined, whole)


@pytest.mark.parametrize("feed", ["tf", "arrays"])
def test_starting_later_goes_on_with_the_same_batches(records, feed):
    data = open_records(records, feed)
    whole = some(data.batches(NAMES, 5, 8), 12)
    assert_same(some(data.batches(NAMES, 5, 8, start_step=9), 3), whole[9:])


@pytest.mark.parametrize("feed", ["tf", "arrays"])
def test_a_late_start_costs_no_more(records, feed):
    data = open_records(records, feed)
    some(data.batches(NAMES, 0, 8), 1)  # warm
    start = time.monotonic()
    (batch,) = some(data.batches(NAMES, 0, 8, start_step=10_000_000), 1)
    assert time.monotonic() - start < 5
    wanted = order.batch_indices(0, 10_000_000, 8, 50)
    assert np.array_equal(batch["clip_image"][:, 0].astype(int), wanted)


def test_straight_from_icons_by_both_feeds(tmp_path):
    feeds = [
        open_data({**ICONS, "feed": feed}, tokenizer_dir=tmp_path / feed)
        for feed in ("tf", "arrays")
    ]
    names = ("image", "tokens")
    a, b = (some(feed.batches(names, 1, 32), 3) for feed in feeds)
    assert_same(a, b)
    data = feeds[0]
    i = order.batch_indices(1, 0, 32, len(data))[4]
    assert np.array_equal(a[0]["image"][4], data.source[int(i)]["image"])
    tokens = data.tokenizer.encode([data.source[int(i)]["caption"]])[0]
    assert np.array_equal(a[0]["tokens"][4], tokens)
    first = data.take(5, names)
    assert np.array_equal(first["image"][2], data.source[2]["image"])
    assert data.captions(5)[2] == data.source[2]["caption"]
    assert len(data.take(10**6, ["tokens"])["tokens"]) == len(data)


def test_a_process_takes_only_its_rows_of_the_first_examples(monkeypatch):
    data = open_data({**ICONS, "feed": "arrays"})
    whole, read = data.take(10, ["image", "tokens"]), []
    reader = data._reader.read
    monkeypatch.setattr(
        data._reader,
        "read",
        lambda rows, *rest: read.extend(rows) or reader(rows, *rest),
    )
    part = data.take(10, ["image", "tokens"], np.array([1, 4, 12]))
    assert read == [1, 4, 9]
    for name, rows in part.items():
        assert len(rows) == 10 and not rows[[0, 2, 8]].any()
        assert np.array_equal(rows[read], whole[name][read])


def test_spec_of_icons(tmp_path):
    spec = open_data(ICONS, tokenizer_dir=tmp_path / "tokenizer").spec
    assert spec.image_size == 16 and spec.num_examples > 100
    assert spec.context_length == 12  # start, 10 words, end
    assert spec.vocab_size == spec.eot_id + 1 < 1000
    assert spec.tokenizer_folder == str(tmp_path / "tokenizer")
    for name in ("embed_dim", "clip_fingerprint", "embedding_mean", "embedding_scale"):
        assert getattr(spec, name) is None
    again = open_data(ICONS, tokenizer_dir=tmp_path / "tokenizer").spec
    assert again == spec
    assert open_data(ICONS).spec.tokenizer_folder is None
    shorter = open_data({**ICONS, "context_length": 9, "vocab_size": 530})
    assert shorter.spec.context_length == 9 and shorter.spec.vocab_size == 530
    with pytest.raises(FileExistsError, match="trained otherwise"):
        other = {**ICONS, "vocab_size": 530}
        open_data(other, tokenizer_dir=tmp_path / "tokenizer")


def test_spec_of_records(records, tokenizer, examples):
    data = open_records(records, "tf")
    spec = data.spec
    x = np.stack([e["clip_image"] for e in examples]).astype(np.float64)
    assert spec.num_examples == len(data) == 50 and spec.embed_dim == 6
    assert spec.clip_fingerprint == "a-clip"
    assert spec.embedding_convention == "raw"
    np.testing.assert_allclose(spec.embedding_mean, x.mean(0))
    np.testing.assert_allclose(spec.embedding_std, x.std(0, ddof=1))
    assert spec.embedding_scale == pytest.approx(np.linalg.norm(x, axis=1).mean())
    assert spec.fingerprint == RecordReader(records).fingerprint
    assert spec.tokenizer_fingerprint == tokenizer.fingerprint
    assert pathlib.Path(spec.tokenizer_folder, "tokenizer.json").is_file()
    assert data.shapes["clip_text"] == ((6,), "float32")
    first = data.take(3, NAMES)
    assert np.array_equal(first["image"][1], examples[1]["image"])
    assert data.captions(2) == [e["caption"] for e in examples[:2]]


def test_the_sample_of_embeddings_is_spread_over_the_records(
    records, examples, monkeypatch
):
    sample = open_records(records).spec.embedding_sample
    assert set(sample()) == {"clip_image", "clip_text"}
    np.testing.assert_array_equal(
        sample()["clip_text"], [e["clip_text"] for e in examples]
    )
    monkeypatch.setattr(loader, "SAMPLE_SIZE", 4)
    np.testing.assert_array_equal(
        sample()["clip_image"], [examples[i]["clip_image"] for i in (0, 12, 25, 37)]
    )
    assert open_data(ICONS).spec.embedding_sample is None


def test_a_given_tokenizer_is_used_and_records_keep_theirs(records, tmp_path):
    folder = str(records / "tokenizer")
    data = open_data({**ICONS, "tokenizer": folder})
    assert data.spec.context_length == 12
    assert data.spec.tokenizer_folder == folder
    open_records(records, tokenizer=folder)
    open_data(ICONS, tokenizer_dir=tmp_path / "other")
    with pytest.raises(ValueError, match="not the tokenizer of the records"):
        open_records(records, tokenizer=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="context_length is 20"):
        open_records(records, context_length=20)


def test_what_does_not_fit_is_refused_at_once(records, tmp_path):
    data = open_records(records)
    with pytest.raises(ValueError, match="1 to 50"):
        data.batches(NAMES, 0, 51)
    with pytest.raises(ValueError, match="no 'text_states'"):
        data.batches(["text_states"], 0, 8)
    with pytest.raises(ValueError, match="no 'clip_image'.*unclip_jax.embed"):
        open_data(ICONS).batches(NAMES, 0, 8)
    with pytest.raises(ValueError, match="expected one of tf, arrays"):
        open_records(records, feed="torch")
    with pytest.raises(ValueError, match="did you mean 'path'"):
        open_data({"source": "records", "pathe": "x"})
    huge = {**ICONS, "image_size": 4096, "num_examples": 10**9, "feed": "arrays"}
    huge["tokenizer"] = str(records / "tokenizer")
    with pytest.raises(ValueError, match="use feed 'tf'"):
        open_data(huge).batches(["image"], 0, 8)


class Torn:
    """A source with examples that cannot be read."""

    image_size, fingerprint = 16, "torn"

    def __init__(self, inner, bad):
        self.inner, self.bad = inner, bad

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        if i in self.bad:
            raise BadRecord(f"key {i}", "torn")
        return self.inner[i]

    def captions(self, n=None):
        return self.inner.captions(n)


@pytest.mark.parametrize("feed", ["tf", "arrays"])
def test_unreadable_examples_are_replaced_counted_and_named(
    icons, tokenizer, feed, caplog
):
    from unclip_jax.data.loader import Dataset

    data = Dataset(Torn(icons, {3, 4, 49}), tokenizer, feed)
    with caplog.at_level(logging.WARNING):
        batches = some(data.batches(["image", "tokens"], 0, 10), 10)
    replaced = {3: 5, 4: 5, 49: 0}
    for step, batch in enumerate(batches):
        for row, i in enumerate(order.batch_indices(0, step, 10, 50)):
            example = icons[replaced.get(int(i), int(i))]
            assert np.array_equal(batch["image"][row], example["image"])
            tokens = tokenizer.encode([example["caption"]])[0]
            assert np.array_equal(batch["tokens"][row], tokens)
    assert data.bad == {f"key {i}": "torn" for i in replaced}
    assert sum("'key 4'" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("feed", ["tf", "arrays"])
def test_too_many_unreadable_examples_are_refused(icons, tokenizer, feed):
    from unclip_jax.data.loader import Dataset

    data = Dataset(Torn(icons, set(range(50))), tokenizer, feed)
    with pytest.raises(ValueError, match="17 of 50 examples cannot be read"):
        some(data.batches(["image"], 0, 10), 1)


def test_a_damaged_record_is_replaced_in_both_feeds(own_records, examples):
    shard = own_records / "shard-00000-of-00003.array_record"
    data = bytearray(shard.read_bytes())
    data[3000] ^= 0xFF  # inside some record: the file's rest is padding
    shard.write_bytes(bytes(data))
    feeds = [open_records(own_records, feed) for feed in ("tf", "arrays")]
    assert_same(*(some(feed.batches(NAMES, 0, 10), 6) for feed in feeds))
    assert feeds[0].bad == feeds[1].bad and 1 <= len(feeds[0].bad) <= 2


@pytest.mark.multiprocess
def test_the_arrays_feed_needs_no_tensorflow_and_the_tf_feed_ends_well(records):
    """In a process without TensorFlow; and one that ends while tf.data reads ahead."""
    code = """
    import sys, itertools
    feed = sys.argv[2]
    if feed == "arrays":
        sys.modules["tensorflow"] = None
    import unclip_jax.data
    assert not [m for m in sys.modules if m.split(".")[0] in ("jax", "transformers")]
    assert sys.modules.get("tensorflow") is None
    from unclip_jax.data.loader import open_data
    icons = {"source": "icons", "nouns": 3, "image_size": 16, "feed": feed}
    for config in ({"source": "records", "path": sys.argv[1], "feed": feed}, icons):
        batches = open_data(config).batches(["image", "tokens"], 0, 8)
        print(sum(int(b["image"].sum()) for b in itertools.islice(batches, 3)))
    """
    outputs = {}
    for feed in ("arrays", "tf"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(records), feed],
            capture_output=True,
            text=True,
            cwd=pathlib.Path(__file__).parents[2],
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        outputs[feed] = done.stdout
    assert outputs["arrays"] == outputs["tf"] != ""


def test_without_tensorflow_the_tf_feed_says_so(records, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match="use feed 'arrays'"):
        open_records(records, "tf").batches(NAMES, 0, 8)


def test_info_has_a_plain_form(records):
    from unclip_jax.config import to_plain

    spec = open_records(records).spec
    plain = {name: value for name, value in vars(spec).items() if not callable(value)}
    assert vars(spec).keys() - plain.keys() == {"embedding_sample"}
    assert json.dumps(to_plain(plain))
