"""Parquet of img2dataset, of Hugging Face and of one's own."""

import errno
import logging
import os

import pyarrow as pa
import pytest
from pyarrow import parquet

from unclip_jax.data.loader import open_data
from unclip_jax.data.sources import BadRecord, make_source

COUNT = 12


def source(path, **options):
    return make_source(
        {"source": "parquet", "path": str(path), "image_size": 8, **options}
    )


def write(path, columns, rows=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=rows)
    return path


@pytest.fixture
def img2dataset(tmp_path, picture):
    """Two files; every third download failed."""
    for part in range(2):
        numbers = range(part * COUNT, (part + 1) * COUNT)
        failed = [i % 3 == 2 for i in numbers]
        columns = {
            "key": [f"{i:09d}" for i in numbers],
            "caption": [f"number {i}" for i in numbers],
            "status": ["failed_to_download" if f else "success" for f in failed],
            "jpg": [
                None if f else picture(i, kind="JPEG")
                for i, f in zip(numbers, failed, strict=True)
            ],
        }
        write(tmp_path / f"{part:05d}.parquet", columns)
    return tmp_path


def test_img2dataset(img2dataset, number_of):
    data = source(img2dataset)
    assert len(data) == 16 and data.failed == {"failed_to_download": 8}
    good = [i for i in range(24) if i % 3 != 2]
    for place in (15, 0, 7, 8, 3):  # any order, across groups and files
        example = data[place]
        i = good[place]
        assert example["key"] == f"{i:09d}" and example["caption"] == f"number {i}"
        assert number_of(example["image"]) == i
    assert data.captions() == [f"number {i}" for i in good]
    assert data.captions(3) == [f"number {i}" for i in good[:3]]
    with pytest.raises(IndexError):
        data[16]


def test_hugging_face(tmp_path, picture, number_of):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "far.png").write_bytes(picture(1))
    images = [
        {"bytes": picture(0), "path": "0.png"},
        {"bytes": None, "path": "far.png"},
        {"bytes": None, "path": "gone.png"},
        None,
    ]
    texts = [["zero", " nought \n"], ["one"], ["two"], ["three"]]
    columns = {"image": images, "text": texts}
    write(tmp_path / "data" / "train-00000-of-00001.parquet", columns)
    data = source(tmp_path, files="**/train-*.parquet")
    assert data[0]["captions"] == ("zero", "nought") and data[0]["caption"] == "zero"
    assert data[0]["key"] == "train-00000-of-00001-0-0"
    assert [number_of(data[i]["image"]) for i in (0, 1)] == [0, 1]
    with pytest.raises(BadRecord, match="gone.png"):
        data[2]
    with pytest.raises(BadRecord, match="no image"):
        data[3]
    assert source(tmp_path, captions="first")[0]["captions"] == ("zero",)


def test_memory_is_bounded(img2dataset, number_of, caplog):
    with caplog.at_level(logging.WARNING):
        data = source(img2dataset, cache_mb=0)
    assert "do not fit into cache_mb=0" in caplog.text
    for i in range(len(data)):
        data[i]
        assert len(data._cache._kept) == 1
    assert number_of(data[0]["image"]) == 0


def test_the_fingerprint_is_of_the_content(img2dataset, tmp_path, picture):
    before = source(img2dataset).fingerprint
    assert source(img2dataset).fingerprint == before
    assert source(img2dataset, min_size=3).fingerprint != before
    columns = {"key": ["x"], "caption": ["more"], "jpg": [picture(0)]}
    columns["status"] = ["success"]
    write(img2dataset / "00002.parquet", columns)
    assert source(img2dataset).fingerprint != before


def test_mistakes_are_named(img2dataset, tmp_path):
    with pytest.raises(ValueError, match="has no column 'jpgs', only key, caption"):
        source(img2dataset, image="jpgs")
    with pytest.raises(FileNotFoundError, match="matches config.data.files 'a"):
        source(img2dataset, files="a*.parquet")
    with pytest.raises(FileNotFoundError, match="/nowhere' does not exist"):
        source(img2dataset / "nowhere")
    with pytest.raises(ValueError, match="did you mean 'image_size'"):
        source(img2dataset, imagesize=3)
    other = write(tmp_path / "x" / "a.parquet", {"bild": [b""], "caption": ["a"]})
    with pytest.raises(ValueError, match="set config.data.image to one of bild"):
        source(other)


def test_damaged_files_are_named(img2dataset):
    file = img2dataset / "00001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="00001.parquet is damaged"):
        source(img2dataset)
    file.write_bytes(whole[:4] + bytes(200) + whole[204:])  # inside the first group
    data = source(img2dataset)
    with pytest.raises(BadRecord, match="row group 0 of 00001.parquet is damaged"):
        data[8]
    data[0]  # another file's


def images(picture, count=4):
    return [{"bytes": picture(i), "path": None} for i in range(count)]


@pytest.mark.parametrize(
    "captions",
    [
        ["a 0", "a 1", "a 2", "a 3"],
        [b"a 0", b"a 1", b"a 2", b"a 3"],
        [[f"a {i}"] for i in range(4)],
        [[f"a {i}".encode(), None] for i in range(4)],
        pa.array(["a 0", "a 1", "a 2", "a 3"]).dictionary_encode(),
        pa.array([f"a {i}" for i in range(4)], pa.large_string()),
    ],
)
def test_captions_are_texts_or_lists_of_them(tmp_path, picture, captions):
    write(tmp_path / "a.parquet", {"image": images(picture), "caption": captions})
    data = source(tmp_path)
    assert data.captions() == [f"a {i}" for i in range(4)]
    assert data[3]["captions"] == ("a 3",)


@pytest.mark.parametrize(
    "captions, message",
    [
        ([{"raw": "a", "id": i} for i in range(4)], "one of caption/raw, caption/id"),
        ([[{"en": "a"}]] * 4, "holds structs, not captions"),
        ([1, 2, 3, 4], "holds int64, not captions"),
        ([0.5] * 4, "holds double, not captions"),
        ([[["a"]]] * 4, "holds list<.*list<.*not captions"),
        (pa.array([[("a", "b")]] * 4, pa.map_(pa.string(), pa.string())), "holds map"),
    ],
)
def test_columns_that_hold_no_captions_are_refused(
    tmp_path, picture, captions, message
):
    write(tmp_path / "a.parquet", {"image": images(picture), "caption": captions})
    with pytest.raises(ValueError, match=f"a.parquet: column 'caption' .*{message}"):
        source(tmp_path)


def test_a_field_of_a_struct_can_be_named(tmp_path, picture):
    rows = [{"raw": [f"a {i}", f"b {i}"], "ids": [1]} for i in range(4)]
    write(tmp_path / "a.parquet", {"image": images(picture), "sentences": rows})
    data = source(tmp_path, caption="sentences/raw")
    assert data[2]["captions"] == ("a 2", "b 2")
    with pytest.raises(ValueError, match="has no column 'sentences/row'"):
        source(tmp_path, caption="sentences/row")


@pytest.mark.parametrize(
    "column, message",
    [
        (["0.jpg"] * 4, "holds string, .*are they paths"),
        ([[1, 2]] * 4, "holds list<"),
        ([1] * 4, "holds int64, not the bytes"),
        ([{"url": "x"}] * 4, "holds struct<"),
    ],
)
def test_columns_that_hold_no_images_are_refused(tmp_path, column, message):
    write(tmp_path / "a.parquet", {"image": column, "caption": ["a"] * 4})
    with pytest.raises(ValueError, match=f"a.parquet: column 'image' {message}"):
        source(tmp_path)


def test_a_column_that_is_there_twice_is_refused(tmp_path, picture):
    names = ["image", "caption", "caption"]
    table = pa.table([images(picture), ["a"] * 4, ["b"] * 4], names=names)
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="several columns 'caption'"):
        source(tmp_path, caption="caption")


@pytest.mark.parametrize("ids", [[None] * 200, [7] * 200, [i % 3 for i in range(200)]])
@pytest.mark.parametrize("feed", ["tf", "arrays"])
def test_damaged_rows_are_counted_whatever_their_keys(tmp_path, picture, ids, feed):
    rows = [{"bytes": b"torn" if i % 2 else picture(0)} for i in range(200)]
    columns = {"image": rows, "caption": ["c"] * 200, "id": pa.array(ids, pa.int64())}
    write(tmp_path / "a.parquet", columns)
    options = {"source": "parquet", "path": str(tmp_path), "image_size": 8}
    data = open_data({**options, "feed": feed})
    with pytest.raises(ValueError, match="17 of 200 examples cannot be read"):
        list(zip(range(20), data.batches(["image"], 0, 20), strict=False))


def test_storage_that_is_away_is_no_damaged_row_group(img2dataset, monkeypatch):
    data = source(img2dataset)

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(data._cache, "_read", refuse)
    with pytest.raises(OSError, match="Input/output"):
        data[3]


def test_damaged_text_in_a_column_is_named(tmp_path, picture):
    text = pa.array([b"a", b"\xff\xfe", b"c", b"d"]).cast(pa.binary())
    column = pa.Array.from_buffers(pa.string(), 4, text.buffers())
    write(tmp_path / "a.parquet", {"image": images(picture), "caption": column})
    data = source(tmp_path)
    with pytest.raises(BadRecord, match="a-0-1.*its caption is damaged"):
        data[1]
    assert data.captions() == ["a", "c", "d"]


def test_images_beside_the_file_are_regular_files(tmp_path, picture):
    os.mkfifo(tmp_path / "fifo.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    rows = [{"bytes": None, "path": name} for name in ("fifo.png", "zero.png", None)]
    write(tmp_path / "a.parquet", {"image": rows, "caption": ["a"] * 3})
    data = source(tmp_path)
    for i, why in enumerate(("is a FIFO", "is a device", "is a folder")):
        with pytest.raises(BadRecord, match=why):
            data[i]


def test_links_to_a_parent_end(tmp_path, picture):
    write(
        tmp_path / "deep" / "a.parquet", {"image": images(picture), "text": ["a"] * 4}
    )
    for name in ("up", "again"):
        os.symlink("..", tmp_path / "deep" / name)
    os.symlink("nowhere", tmp_path / "deep" / "b.parquet")
    os.mkfifo(tmp_path / "deep" / "c.parquet")
    assert len(source(tmp_path)) == 4
    assert len(source(tmp_path, files="*/*.parquet")) == 4
    with pytest.raises(FileNotFoundError, match="matches config.data.files"):
        source(tmp_path, files="*.parquet")
