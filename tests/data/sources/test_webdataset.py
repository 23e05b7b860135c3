"""Tars are read at random through an index that is made once."""

import io
import json
import os
import tarfile

import pytest

from unclip_jax.data.sources import BadRecord, make_source, tar_index


def source(path, **options):
    data = {"source": "webdataset", "path": str(path), "image_size": 8, **options}
    return make_source(data)


def write_tar(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tars(tmp_path, picture):
    """Twelve pictures in two tars, and one sample without, one without a caption."""
    for part in range(2):
        members = []
        for i in range(6 * part, 6 * part + 6):
            suffix, kind = (".png", "PNG") if i % 2 else (".jpg", "JPEG")
            members.append((f"{i:09d}{suffix}", picture(i, kind=kind)))
            if i % 3:
                members.append((f"{i:09d}.txt", f"number {i}".encode()))
            meta = {"caption": f"json {i}", "texts": [f"a {i}", f"b {i}"]}
            members.append((f"{i:09d}.json", json.dumps(meta).encode()))
        members.append((f"{part}-lost.txt", b"no picture"))
        members.append((f"{part}-mute.png", picture(0)))
        write_tar(tmp_path / f"{part:05d}.tar", members)
    return tmp_path


def test_samples(tars, number_of):
    data = source(tars)
    assert len(data) == 12
    assert data.failed == {tar_index.NO_IMAGE: 2, tar_index.NO_CAPTION: 2}
    for i in (11, 0, 6, 5, 3):
        example = data[i]
        assert example["key"] == f"{i:09d}" and number_of(example["image"]) == i
        assert example["caption"] == (f"number {i}" if i % 3 else f"json {i}")
    assert data.captions(2) == ["json 0", "number 1"]
    several = source(tars, caption="texts")
    assert several[6]["captions"] == ("a 6", "b 6")
    assert several.fingerprint != data.fingerprint


def test_the_index_is_made_once_and_follows_the_tars(tars, monkeypatch, picture):
    before = source(tars).fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "scan", None)
        assert source(tars).fingerprint == before
    members = [("x.png", picture(1)), ("x.txt", b"x")]
    write_tar(tars / "00002.tar", members)
    data = source(tars)
    assert len(data) == 13 and data.fingerprint != before
    assert data[12]["caption"] == "x"


def test_the_index_goes_where_it_may(tars, tmp_path):
    source(tars, cache=str(tmp_path / "cache"))
    assert not list(tars.glob("*.npy")) and list((tmp_path / "cache").glob("*.npy"))
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="set config.data.cache"):
        source(tars, cache=str(tmp_path / "file" / "x"))


def test_many_tars_are_not_kept_open(tars, monkeypatch, number_of):
    from unclip_jax.data.sources import webdataset

    monkeypatch.setattr(webdataset, "MANY_FILES", 1)
    data = source(tars)
    assert [number_of(data[i]["image"]) for i in (0, 7)] == [0, 7] and not data._open


def test_long_and_nested_names(tmp_path, picture):
    long = "some/folder/" + 120 * "n"
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        members = [(f"{long}.jpg", picture(1)), (f"{long}.txt", "große".encode())]
        write_tar(tmp_path / "a.tar", members, format)
        example = source(tmp_path)[0]
        assert example["key"] == long and example["caption"] == "große"


@pytest.mark.parametrize("how", ["cut", "cut header", "overwritten", "gzip", "empty"])
def test_damaged_tars_are_named(tars, how):
    file = tars / "00001.tar"
    whole = file.read_bytes()
    if how == "cut":
        file.write_bytes(whole[:3000])
    elif how == "cut header":
        file.write_bytes(whole[:1800])
    elif how == "overwritten":  # the second header: tarfile would stop in silence
        file.write_bytes(whole[:1024] + b"x" * 600 + whole[1624:])
    elif how == "gzip":
        import gzip

        file.write_bytes(gzip.compress(whole))
    else:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 2 tars are damaged: .*00001.tar") as e:
        source(tars)
    assert "00000.tar" not in str(e.value)


def test_what_breaks_later_is_a_bad_record(tars):
    data = source(tars)
    os.truncate(tars / "00001.tar", 2000)
    with pytest.raises(BadRecord, match="'000000008'.*00001.tar ends before"):
        data[8]
    whole = bytearray((tars / "00000.tar").read_bytes())
    at = int(data._index[1]["image_at"])
    whole[at + 20 : at + 60] = bytes(40)
    (tars / "00000.tar").write_bytes(whole)
    with pytest.raises(BadRecord, match="'000000001'.*image is damaged"):
        data[1]
    data[0]
