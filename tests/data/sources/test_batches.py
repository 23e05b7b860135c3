"""Files become batches: any number of processes, any start, no repeats, filters."""

import io
import itertools
import tarfile
import time

import numpy as np
import pytest

from unclip_jax.data import order
from unclip_jax.data.loader import open_data

COUNT, NAMES = 20, ("image", "tokens")


@pytest.fixture(scope="module")
def tars(tmp_path_factory, picture):
    """Pictures 0 to 19 in two tars, every fifth too small for min_size=10."""
    folder = tmp_path_factory.mktemp("tars")
    for part in range(2):
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for i in range(10 * part, 10 * part + 10):
                data = picture(i, size=(9, 9) if i % 5 == 0 else (12, 12))
                for name, text in ((f"{i}.png", data), (f"{i}.txt", b"number %d" % i)):
                    info = tarfile.TarInfo(name)
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text))
    return folder


def open_tars(folder, feed, **options):
    config = {"source": "webdataset", "path": str(folder), "image_size": 8}
    return open_data({**config, "feed": feed, **options})


def some(batches, n):
    return list(itertools.islice(batches, n))


@pytest.mark.parametrize("feed", ["tf", "arrays"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_global_batch_is_the_same_for_any_processes(
    tars, number_of, feed, processes
):
    data = open_tars(tars, feed)
    parts = [
        some(data.batches(NAMES, 3, 8, rows=rows), 6)
        for rows in np.split(np.arange(8), processes)
    ]
    for step in range(6):
        whole = np.concatenate([part[step]["image"] for part in parts])
        shown = [number_of(image) for image in whole]
        assert shown == order.batch_indices(3, step, 8, COUNT).tolist()


@pytest.mark.parametrize("feed", ["tf", "arrays"])
def test_an_epoch_repeats_nothing(tars, number_of, feed):
    batches = open_tars(tars, feed).batches(["image"], 0, 5)
    for _ in range(3):
        shown = [number_of(i) for batch in some(batches, 4) for i in batch["image"]]
        assert sorted(shown) == list(range(COUNT))


@pytest.mark.parametrize("feed", ["tf", "arrays"])
def test_resuming_at_ten_million_costs_less_than_a_second_more(tars, feed):
    data = open_tars(tars, feed)
    some(data.batches(NAMES, 0, 8), 1)  # warm
    seconds = []
    for step in (0, 10_000_000):
        began = time.perf_counter()
        (batch,) = some(data.batches(NAMES, 0, 8, start_step=step), 1)
        seconds.append(time.perf_counter() - began)
    assert seconds[1] < seconds[0] + 1


@pytest.mark.parametrize("feed", ["tf", "arrays"])
def test_what_filters_leave_out_is_replaced_but_not_counted_as_bad(
    tars, number_of, feed
):
    data = open_tars(tars, feed, min_size=10)
    batches = some(data.batches(["image"], 0, 10), 2)
    shown = [number_of(image) for batch in batches for image in batch["image"]]
    wanted = [
        int(i) + (i % 5 == 0)
        for step in range(2)
        for i in order.batch_indices(0, step, 10, COUNT)
    ]
    assert shown == wanted and data.bad == {}
    with pytest.raises(ValueError, match="none of the 20 examples"):
        some(open_tars(tars, feed, min_size=99).batches(["image"], 0, 10), 1)
