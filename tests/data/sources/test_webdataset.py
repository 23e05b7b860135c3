"""Tars are read at random through an index that is made once."""

import errno
import io
import json
import os
import tarfile

import pytest

from unclip_jax.data.loader import open_data
from unclip_jax.data.sources import (
    BadRecord,
    LeftOut,
    make_source,
    tar_headers,
    tar_index,
)


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
    assert data.failed == {tar_headers.NO_IMAGE: 2, tar_headers.NO_CAPTION: 2}
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


def test_data_that_nobody_can_write_to_has_its_index_elsewhere(
    tars, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "read-only").mkdir()
    for tar in tars.glob("*.tar"):
        tar.rename(tmp_path / "read-only" / tar.name)
    write = tar_index.files.atomic_write

    def refuse(path, content):
        if "read-only" in str(path):
            raise OSError(30, "Read-only file system", str(path))
        write(path, content)

    monkeypatch.setattr(tar_index.files, "atomic_write", refuse)
    with caplog.at_level("WARNING"):
        data = source(tmp_path / "read-only")
    assert len(data) == 12 and "Read-only file system" in caplog.text
    assert list((tmp_path / "home" / "unclip_jax").glob("*.npy"))
    monkeypatch.setattr(tar_index, "scan", None)
    assert source(tmp_path / "read-only").fingerprint == data.fingerprint


@pytest.mark.parametrize(
    "column,value", [("tar", 7), ("image_size", 2**60), ("text_at", -1)]
)
def test_a_damaged_row_of_the_index_is_a_bad_record(tars, column, value):
    data = source(tars)
    row = data._index[3].copy()
    row[column] = value
    data._index = [row]
    with pytest.raises(BadRecord, match="the index of the tars is damaged"):
        data[0]


def test_many_tars_are_not_kept_open(tars, monkeypatch, number_of):
    monkeypatch.setattr("unclip_jax.data.open_files._share", lambda: 1)
    data = source(tars)
    for i in (0, 7, 1, 8):
        assert number_of(data[i]["image"]) == i
        assert len(data._files._readers) == 1


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


def pairs(picture, count=4, name="{}", image=".jpg", text=".txt"):
    for i in range(count):
        yield name.format(i) + image, picture(i, kind="JPEG")
        yield name.format(i) + text, f"number {i}".encode()


def numbered(data):
    return data.captions() == [f"number {i}" for i in range(4)]


def test_a_field_of_json_counts_where_it_is_named(tmp_path, picture):
    members = []
    for name, data in pairs(picture):
        members.append((name, data))
        if name.endswith(".txt"):
            fields = {"caption": "IMG.JPG", "blip": f"blip {name[0]}"}
            members.append((f"{name[0]}.json", json.dumps(fields).encode()))
    write_tar(tmp_path / "a.tar", pairs(picture))
    assert numbered(source(tmp_path, caption="caption"))
    with pytest.raises(ValueError, match="'blip' is a field of .json .* have none"):
        source(tmp_path, caption="blip")
    write_tar(tmp_path / "a.tar", members)
    assert numbered(source(tmp_path))
    assert source(tmp_path, caption="blip")[2]["caption"] == "blip 2"
    assert source(tmp_path, caption="caption")[2]["caption"] == "IMG.JPG"
    with pytest.raises(ValueError, match="no .json in .* field 'blop'.* blip, caption"):
        source(tmp_path, caption="blop")


@pytest.mark.parametrize("field", ["text", "alt", "Caption"])
def test_a_json_without_captions_is_refused(tmp_path, picture, field):
    members = [
        (name, json.dumps({field: "a"}).encode() if name.endswith("json") else data)
        for name, data in pairs(picture, text=".json")
    ]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=f"they have {field}: set config.data.caption"):
        source(tmp_path)


HALF = "\\ud83d"  # of an emoji, as JSON may write it


@pytest.mark.parametrize(
    "value, shown",
    [
        (f'"a cat {HALF}"', ("a cat \ufffd",)),
        (f'"{HALF} cat"', ("\ufffd cat",)),
        (f'"{HALF}\\ude00 cat"', ("\U0001f600 cat",)),
        (f'["a", null, NaN, "{HALF}"]', ("a", "\ufffd")),
        ("7", ("7",)),
        ("null", LeftOut),
        ("NaN", LeftOut),
        ('""', LeftOut),
        ("[]", LeftOut),
        ('[null, " "]', LeftOut),
        ('{"en": "x"}', BadRecord),
        ('[["a"]]', BadRecord),
        ('[{"en": "x"}]', BadRecord),
    ],
)
def test_captions_in_json_become_text_or_are_named(tmp_path, picture, value, shown):
    fields = f'{{"caption": {value}}}'.encode()
    write_tar(tmp_path / "a.tar", [("x.png", picture(1)), ("x.json", fields)])
    data = source(tmp_path)
    if isinstance(shown, tuple):
        assert data[0]["captions"] == shown == data.find_captions(0)
        assert data.captions() == [*shown]
        return
    with pytest.raises(BadRecord, match="'x'.*caption") as caught:
        data[0]
    assert type(caught.value) is shown and data.captions() == []


@pytest.mark.parametrize("text", [b"[1]", b"{", b"7", b"[" * 100_000])
def test_damaged_json_is_named(tmp_path, picture, text):
    write_tar(tmp_path / "a.tar", [("x.png", picture(1)), ("x.json", text)])
    with pytest.raises(BadRecord, match="'x'.*its caption is damaged"):
        source(tmp_path)[0]


def test_an_empty_text_beside_json_is_none(tmp_path, picture):
    fields = b'{"caption": "of the json"}'
    members = [("x.png", picture(1)), ("x.txt", b""), ("x.json", fields)]
    write_tar(tmp_path / "a.tar", [*members, ("y.png", picture(2)), ("y.txt", b"")])
    data = source(tmp_path)
    assert len(data) == 2 and data[0]["caption"] == "of the json"
    with pytest.raises(LeftOut, match="no caption"):
        data[1]


def test_members_may_lie_apart_and_come_twice(tmp_path, picture, number_of):
    members = list(pairs(picture))
    later = [("1.txt", b"number 1"), ("2.jpg", picture(2, kind="JPEG"))]
    members[3], members[4] = ("1.txt", b"old"), ("2.jpg", b"old")
    write_tar(tmp_path / "a.tar", [*members[1::2], *members[::2], *later])
    data = source(tmp_path)
    assert numbered(data) and len(data) == 4
    assert [number_of(data[i]["image"]) for i in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "image, text",
    [
        (".input.jpg", ".outputs.txt"),
        (".JPG", ".Caption.TXT"),
        (".left.jpeg", ".txt"),
        (".jpg", ".meta.txt"),
    ],
)
def test_suffixes_of_two_parts(tmp_path, picture, image, text):
    write_tar(tmp_path / "a.tar", pairs(picture, image=image, text=text))
    assert numbered(source(tmp_path))


def test_a_suffix_of_one_part_comes_first(tmp_path, picture, number_of):
    others = [("x.mask.png", picture(5)), ("x.old.txt", b"old")]
    write_tar(
        tmp_path / "a.tar",
        [*others, ("x.png", picture(3)), ("x.txt", b"new"), ("x.z.jpg", picture(6))],
    )
    (example,) = [source(tmp_path)[0]]
    assert example["caption"] == "new" and number_of(example["image"]) == 3


def test_what_a_mac_adds_is_no_data(tmp_path, picture):
    members = []
    for name, data in pairs(picture):
        members += [(f"./._{name}", b"\0\5\x16\7"), (f"./{name}", data)]
    write_tar(tmp_path / "a.tar", members)
    data = source(tmp_path)
    assert numbered(data) and data.failed == {}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_that_are_not_utf8(tmp_path, picture, format):
    with tarfile.open(
        tmp_path / "a.tar", "w", format=format, encoding="latin-1"
    ) as tar:
        for name, data in pairs(picture, name="caff\xe9{}"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = source(tmp_path)
    assert numbered(data) and data[1]["key"] == "caff\ufffd1"


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_tars_are_told_from_damaged_ones(tmp_path, picture, kind):
    with tarfile.open(tmp_path / "a.tar", f"w:{kind}") as tar:
        tar.addfile(tarfile.TarInfo("x"), io.BytesIO())
    tool = {"gz": "gunzip", "bz2": "bunzip2", "xz": "unxz"}[kind]
    with pytest.raises(ValueError, match=f"is compressed: unpack it with {tool}"):
        source(tmp_path)


@pytest.mark.parametrize("gap", [0, 512, 10240])
def test_joined_tars_are_refused(tmp_path, picture, gap):
    write_tar(tmp_path / "a.tar", pairs(picture))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole + bytes(gap) + whole)
    with pytest.raises(ValueError, match="more follows behind its end mark"):
        source(tmp_path)


def test_a_source_without_examples_says_what_it_holds(tmp_path, picture):
    write_tar(tmp_path / "a.tar", [("a.png", picture(0)), ("b.txt", b"b")])
    config = {"source": "webdataset", "path": str(tmp_path), "image_size": 8}
    what = "is empty; what it holds are no examples .1: no caption in .*1: no image in"
    for data in (config, {"source": "mixture", "sources": {"a": config}}):
        with pytest.raises(ValueError, match=what):
            open_data(data)


def test_storage_that_is_away_is_no_damaged_image(tars, monkeypatch):
    data = source(tars)

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refuse)
        with pytest.raises(OSError, match="Input/output"):
            data[3]
    assert data[3]["key"] == "000000003"
