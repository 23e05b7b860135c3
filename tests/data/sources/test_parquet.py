"""Parquet of img2dataset, of Hugging Face and of one's own."""

import logging

import pyarrow as pa
import pytest
from pyarrow import parquet

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
