"""The pipeline of reads: in order, a few rows at a time, bounded in bytes."""

import itertools
import threading
import time

import numpy as np
import pytest

from unclip_jax.data import tf_feed

SHAPES = {"x": ((2,), "int64")}


class Reads:
    """Rows (step, row), and how many rows were being read at once."""

    def __init__(self, seconds=0.0, broken=None):
        self.seconds, self.broken = seconds, broken
        self.rows, self.active, self.most, self.largest = 0, 0, 0, 0
        self.lock = threading.Lock()

    def __call__(self, step, first, end):
        with self.lock:
            self.active += end - first
            self.most = max(self.most, self.active)
            self.largest = max(self.largest, end - first)
        time.sleep(self.seconds)
        with self.lock:
            self.active -= end - first
            self.rows += end - first
        if step == self.broken:
            raise KeyError(f"step {step}")
        return {"x": np.array([(step, row) for row in range(first, end)])}


def take(batches, n):
    return list(itertools.islice(batches, n))


@pytest.mark.parametrize("rows", [1, 3, 7, 64])
@pytest.mark.parametrize("row_bytes", [1, tf_feed.READ_BYTES // 5, 2**40])
@pytest.mark.parametrize("start", [0, 10_000_000])
def test_rows_come_in_order_however_they_are_read(rows, row_bytes, start):
    batches = tf_feed.tf_batches(Reads(), SHAPES, rows, start, row_bytes)
    for step, batch in enumerate(take(batches, 5), start):
        np.testing.assert_array_equal(batch["x"][:, 0], step)
        np.testing.assert_array_equal(batch["x"][:, 1], np.arange(rows))


def test_slow_reads_of_one_batch_go_side_by_side(monkeypatch):
    monkeypatch.setattr(tf_feed, "MAX_READS", 16)
    reads = Reads(seconds=0.1)
    batches = tf_feed.tf_batches(reads, SHAPES, 16, 0, 1)
    began = time.monotonic()
    take(batches, 1)
    assert time.monotonic() - began < 1.5  # 1.6 s and more one after the other
    assert reads.largest == 1 and reads.most > 4


@pytest.mark.parametrize("batch_bytes", [2**20, 2**28, 2**30, 2**33])
def test_what_is_read_ahead_is_bounded_in_bytes(batch_bytes):
    """Rows of a megabyte as rows of a gigabyte: never 16 batches whatever they hold."""
    rows = 8
    reads = Reads()
    batches = tf_feed.tf_batches(reads, SHAPES, rows, 0, batch_bytes // rows)
    take(batches, 1)
    settled = -1
    while settled != reads.rows:  # until nothing more is read ahead
        settled = reads.rows
        time.sleep(0.3)
    ahead = (settled - rows) * batch_bytes // rows
    # batches that wait, one that is being put together, and reads
    assert ahead <= 2 * tf_feed.AHEAD_BYTES + 2 * batch_bytes
    assert settled - rows <= (tf_feed.MAX_BATCHES + 2) * rows + tf_feed.MAX_READS * rows


def test_an_error_comes_with_its_step():
    batches = tf_feed.tf_batches(Reads(broken=3), SHAPES, 4, 0, 1)
    assert len(take(batches, 3)) == 3
    with pytest.raises(KeyError, match="step 3"):
        next(batches)


def test_reading_ahead_ends_when_the_iterator_is_closed_or_dropped():
    for how in ("close", "drop"):
        reads = Reads(seconds=0.01)
        batches = tf_feed.tf_batches(reads, SHAPES, 4, 0, 2**20)
        take(batches, 1)
        if how == "close":
            batches.close()
        del batches
        time.sleep(0.3)
        rows = reads.rows
        time.sleep(0.3)
        assert reads.rows == rows


class Storage(Reads):
    """Reads whose rows are fetched before, each after a wait."""

    def __init__(self, latency, broken=None):
        super().__init__(broken=broken)
        self.latency, self.waiting, self.most_waiting = latency, 0, 0
        self.fetched, self.taken = [], 0

    def fetch(self, step, first, end):
        with self.lock:
            self.fetched += [(step, row) for row in range(first, end)]
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
        time.sleep(self.latency)
        with self.lock:
            self.waiting -= 1
        if step == self.broken:
            raise OSError("the bucket is away")
        return [(step, row) for row in range(first, end)]

    def __call__(self, step, first, end, fetched=None):
        if fetched is not None:
            assert fetched == [(step, row) for row in range(first, end)]
            self.taken += len(fetched)
        return super().__call__(step, first, end)


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_rows_of_far_storage_are_fetched_ahead_by_hundreds(rows):
    storage = Storage(0.05)
    began = time.monotonic()
    batches = tf_feed.tf_batches(storage, SHAPES, rows, 5, 100, storage.fetch)
    for step, batch in enumerate(take(batches, 4), 5):
        np.testing.assert_array_equal(batch["x"][:, 0], step)
        np.testing.assert_array_equal(batch["x"][:, 1], np.arange(rows))
    assert storage.taken >= 4 * rows
    if rows >= 64:  # one after the other they would take ten seconds and more
        assert time.monotonic() - began < 6 and storage.most_waiting > 32
    repeated = len(storage.fetched) - len(set(storage.fetched))
    assert repeated <= 4  # those that measured the latency
    batches.close()


def test_rows_of_a_fast_disk_are_read_when_they_are_decoded():
    storage = Storage(0.0)
    batches = tf_feed.tf_batches(storage, SHAPES, 64, 0, 100, storage.fetch)
    take(batches, 3)
    assert len(storage.fetched) <= 4 and not storage.taken


def test_what_is_fetched_ahead_is_bounded_in_bytes():
    storage, rows = Storage(0.01), 8
    batches = tf_feed.tf_batches(storage, SHAPES, rows, 0, 2**27, storage.fetch)
    take(batches, 1)
    time.sleep(0.5)
    ahead = len(storage.fetched) - rows
    assert ahead * 2**27 <= 4 * tf_feed.AHEAD_BYTES + 2 * rows * 2**27


def test_an_error_of_a_fetch_comes_with_its_step():
    storage = Storage(0.01, broken=3)
    batches = tf_feed.tf_batches(storage, SHAPES, 4, 0, 1, storage.fetch)
    assert len(take(batches, 3)) == 3
    with pytest.raises(OSError, match="the bucket is away"):
        next(batches)
