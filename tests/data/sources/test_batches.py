"""Files become batches: any number of processes, any start, no repeats, filters."""

import io
import itertools
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert set(data.left_out) == {"a side below min_size 10"}
    # once by the feed "arrays", which reads every example once; as often as they come
    # in the batches, and in those read ahead, by "tf"
    assert data.left_out.total() >= (4 if feed == "arrays" else 3)
    with pytest.raises(ValueError, match="none of the 20 examples.*min_size 99"):
        some(open_tars(tars, feed, min_size=99).batches(["image"], 0, 10), 1)


WIDTH, SIDE = 13, 8  # six squares


@pytest.fixture(scope="module")
def strips(tmp_path_factory):
    """A folder of images wider than high, whose red is the column's number."""
    folder = tmp_path_factory.mktemp("strips")
    image = np.zeros((SIDE, WIDTH, 3), np.uint8)
    image[..., 0] = np.arange(WIDTH)
    for i in range(COUNT):
        Image.fromarray(image).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}")
    return folder


def open_strips(folder, **options):
    config = {"source": "folder", "path": str(folder), "image_size": SIDE}
    return open_data({**config, "feed": "tf", **options})


def first_columns(batches, steps):
    return np.stack([batch["image"][:, 0, 0, 0] for batch in some(batches, steps)])


def test_random_squares_are_a_function_of_seed_step_and_row(strips):
    data = open_strips(strips, crop="random")
    steps, size = 30, 8
    shown = first_columns(data.batches(["image"], 5, size), steps)
    positions = [
        order.crop_positions(5, step, np.arange(size)) for step in range(steps)
    ]
    squares = WIDTH - SIDE + 1
    np.testing.assert_array_equal(shown, (np.stack(positions) * squares).astype(int))
    # all six, each about as often: 40 +- 5.8 of 240
    counts = np.bincount(shown.ravel(), minlength=squares)
    assert len(counts) == squares and counts.min() > 20 and counts.max() < 60
    # the same whichever process reads a row, and from whichever step
    late = data.batches(["image"], 5, size, start_step=20, rows=[2, 3])
    np.testing.assert_array_equal(first_columns(late, 10), shown[20:, 2:4])
    assert (first_columns(data.batches(["image"], 6, size), steps) != shown).any()
    # previews and evaluators see the middle
    assert (data.take(4, ["image"])["image"][:, 0, 0, 0] == 2).all()


def test_the_middle_square_is_the_default(strips):
    data = open_strips(strips)
    batches = some(data.batches(["image"], 0, 8), 3)
    for batch in batches:
        np.testing.assert_array_equal(
            batch["image"][..., 0], np.full((8, 8, 8), range(2, 10))
        )
    named = some(open_strips(strips, crop="center").batches(["image"], 0, 8), 3)
    np.testing.assert_array_equal(named[2]["image"], batches[2]["image"])
    assert open_strips(strips, crop="random").spec == data.spec


def test_random_squares_in_a_mixture(strips):
    strip = {"source": "folder", "path": str(strips), "image_size": SIDE}
    data = open_data(
        {
            "source": "mixture",
            "sources": {"a": {**strip, "crop": "random"}, "b": strip},
        }
    )
    shown = first_columns(data.batches(["image"], 0, 16), 8)
    keys = [
        [
            data.source[int(i)]["key"][0]
            for i in order.batch_indices(0, step, 16, len(data))
        ]
        for step in range(8)
    ]
    assert set(shown[np.array(keys) == "b"]) == {2}
    assert set(shown[np.array(keys) == "a"]) == {0, 1, 2, 3, 4, 5}


def test_random_squares_are_refused_where_they_would_stay_the_same(strips):
    with pytest.raises(ValueError, match="crop 'random' needs feed 'tf'"):
        open_strips(strips, crop="random", feed="arrays")
    with pytest.raises(ValueError, match="crop 'middle': expected one of"):
        open_strips(strips, crop="middle")
    icons = {"source": "icons", "image_size": 8, "crop": "random"}
    with pytest.raises(ValueError, match="'crop'"):
        open_data(icons)
