"""The index of tars: tarfile's members, made by several processes, known again."""

import io
import json
import os
import tarfile
import threading

import numpy as np
import pytest

from unclip_jax.data.sources import tar_headers, tar_index
from unclip_jax.errors import UsageError

LONG = "folder/" * 30 + "ü" * 70


def add(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def write_samples(path, numbers, format=tarfile.PAX_FORMAT, **fields):
    with tarfile.open(path, "w", format=format) as tar:
        for i in numbers:
            add(tar, f"{i:06d}.jpg", bytes(100 + i), **fields)
            add(tar, f"{i:06d}.txt", b"caption", **fields)


@pytest.fixture
def tars(tmp_path):
    """Ten tars of five samples."""
    for number in range(10):
        name = tmp_path / f"{number:05d}.tar"
        write_samples(name, range(5 * number, 5 * number + 5))
    return sorted(tmp_path.glob("*.tar"))


@pytest.mark.parametrize("read_bytes", [512, tar_headers.AT_ONCE, tar_headers.WAITING])
@pytest.mark.parametrize("mtime", [0, 1.25])  # floats need pax headers
@pytest.mark.parametrize(
    "format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_members_are_those_of_tarfile(tmp_path, format, mtime, read_bytes):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format) as tar:
        rng = np.random.default_rng(0)
        for i in range(30):
            add(tar, f"{i}.jpg", rng.bytes(rng.integers(0, 3000)), mtime=mtime)
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "folder/link.jpg", type=tarfile.SYMTYPE, linkname="x" * 90)
        add(tar, "folder/hard.jpg", type=tarfile.LNKTYPE, linkname="1.jpg")
        add(tar, "folder/fifo", type=tarfile.FIFOTYPE)
        add(tar, "h" * 60 + "/" + "n" * 70, b"a prefix", mode=0o600)
        add(tar, "\xe9t\xe9/\u4e16.txt", b"not ASCII", uname="\xe9")
        if format != tarfile.USTAR_FORMAT:
            add(tar, LONG, b"long")
            add(tar, "folder/long", type=tarfile.SYMTYPE, linkname=LONG)
        add(tar, "last", b"1" * 512)
    with tarfile.open(path) as tar:
        expected = [
            (m.name.encode("utf-8", "surrogateescape"), m.offset_data, m.size)
            for m in tar
            if m.isfile()
        ]
    with open(path, "rb") as file:
        assert [*tar_headers._members(file.fileno(), read_bytes)] == expected


def test_sizes_beyond_eight_gigabytes_are_read(tmp_path):
    """In base 256 (GNU) or a pax header; the file has a hole for the bytes."""
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("x.jpg")
        info.size = 9 * 2**30
        path = tmp_path / "a.tar"
        with open(path, "wb") as file:
            file.write(info.tobuf(format))
            start = file.tell()
            file.seek(info.size, os.SEEK_CUR)
            file.write(tarfile.TarInfo("y.txt").tobuf(format) + bytes(1024))
        with open(path, "rb") as file:
            members = [*tar_headers._members(file.fileno(), 512)]
        assert members[0] == (b"x.jpg", start, info.size)
        assert members[1] == (b"y.txt", start + info.size + 512, 0)


def test_signed_checksums_are_sums_too(tmp_path):
    write_samples(tmp_path / "a.tar", range(2), tarfile.USTAR_FORMAT, uname="\xe9")
    data = bytearray((tmp_path / "a.tar").read_bytes())
    signed = 256 + sum(tar_headers._SIGNED.unpack(data[:512]))
    assert signed != int(data[148:154], 8)
    data[148:156] = b"%06o\0 " % signed
    (tmp_path / "a.tar").write_bytes(data)
    assert len(tar_headers.scan_tar(tmp_path / "a.tar")[0]) == 2


def test_sparse_members_are_refused(tmp_path):
    info = tarfile.TarInfo("x.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(UsageError, match="sparse"):
        tar_headers.scan_tar(tmp_path / "a.tar")


class Processes:
    """Runs open_index as several processes would; which tars each has scanned."""

    def __init__(self, monkeypatch):
        self.local, self.scanned = threading.local(), []
        scan_tar, lock = tar_index.scan_tar, threading.Lock()

        def counted(file, *args):
            with lock:
                self.scanned.append(file.name)
            return scan_tar(file, *args)

        def number():
            return getattr(self.local, "number", (0, 1))

        monkeypatch.setattr(tar_index, "scan_tar", counted)
        monkeypatch.setattr(tar_index.distributed, "process_number", number)

    def open(self, tars, folders):
        """The indexes, or errors, of one process for each folder."""
        results = [None] * len(folders)

        def run(number):
            self.local.number = number, len(folders)
            try:
                results[number] = tar_index.open_index(tars, [folders[number]])
            except Exception as error:
                results[number] = error

        threads = [threading.Thread(target=run, args=(k,)) for k in range(len(folders))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture
def processes(monkeypatch):
    return Processes(monkeypatch)


def test_processes_share_the_scan_and_read_each_tar_once(tars, tmp_path, processes):
    alone = tar_index.open_index(tars, [tmp_path / "alone"])
    processes.scanned.clear()
    indexes = processes.open(tars, [tmp_path / "shared"] * 3)
    assert sorted(processes.scanned) == [tar.name for tar in tars]
    (file,) = (tmp_path / "shared").glob("*.npy")
    assert file.read_bytes() == (tmp_path / "alone" / file.name).read_bytes()
    assert [p.suffix for p in sorted((tmp_path / "shared").iterdir())] == [
        ".json",
        ".npy",
    ]
    for index in indexes:
        assert len(index) == 50 and index.digest == alone.digest
        assert index[49] == alone[49] and index[49]["key"] == b"000049"


def test_processes_without_a_common_folder_scan_alone(
    tars, tmp_path, processes, monkeypatch
):
    monkeypatch.setattr(tar_index, "PATIENCE", 0.3)
    indexes = processes.open(tars, [tmp_path / "a", tmp_path / "b"])
    assert [len(index) for index in indexes] == [50, 50]
    assert sorted(processes.scanned) == sorted(2 * [tar.name for tar in tars])


def test_a_damaged_tar_stops_every_process(tars, tmp_path, processes):
    whole = tars[7].read_bytes()
    tars[7].write_bytes(whole[:600])
    errors = processes.open(tars, [tmp_path / "shared"] * 2)
    for error in errors:
        assert "1 of 10 tars are damaged: " in str(error) and "00007.tar" in str(error)
    tars[7].write_bytes(whole)
    assert len(tar_index.open_index(tars, [tmp_path / "shared"])) == 50


def test_a_scan_that_was_interrupted_goes_on(tars, tmp_path, processes, monkeypatch):
    scan_tar = tar_index.scan_tar

    def killed(file, *args):
        if file.name == "00006.tar":
            raise KeyboardInterrupt
        return scan_tar(file, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tar_index, "scan_tar", killed)
        tar_index.open_index(tars, [tmp_path / "x"])
    processes.scanned.clear()
    assert len(tar_index.open_index(tars, [tmp_path / "x"])) == 50
    assert 0 < len(processes.scanned) < 10


def test_a_copy_has_the_same_index_and_other_tars_have_not(tars, tmp_path, processes):
    tar_index.open_index(tars, [tmp_path])
    for tar in tars:
        os.utime(tar, (1, 1))
    processes.scanned.clear()
    assert len(tar_index.open_index(tars, [tmp_path])) == 50
    assert not processes.scanned
    # of the same size: tars are padded to ten kilobytes
    size = tars[3].stat().st_size
    write_samples(tars[3], range(500, 504))
    assert tars[3].stat().st_size == size
    for _ in range(2):
        assert len(tar_index.open_index(tars, [tmp_path])) == 49
    assert len(processes.scanned) == 10


def test_an_index_of_an_older_version_is_read(tars, tmp_path, processes):
    """Named by the tars' times, its .json with the counts alone."""
    index = tar_index.open_index(tars, [tmp_path])
    stamp = [(t.name, t.stat().st_size, t.stat().st_mtime_ns) for t in tars]
    older = tmp_path / tar_index._file_name(tar_headers.TEXTS, stamp)
    next(tmp_path.glob("*.npy")).rename(older)
    next(tmp_path.glob("*.json")).unlink()
    older.with_suffix(".json").write_text(json.dumps({"no caption in the tar": 3}))
    processes.scanned.clear()
    found = tar_index.open_index(tars, [tmp_path])
    assert not processes.scanned and found.failed == {"no caption in the tar": 3}
    assert found.digest == index.digest and len(found) == 50


@pytest.mark.parametrize(
    "name,content",
    [
        ("*.npy", b""),
        ("*.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': (("),
        ("*.npy", "cut"),
        ("*.npy", "flip"),
        ("*.npy", None),
        ("*.json", b""),
        ("*.json", b"[" * 100_000),
        ("*.json", b'{"digest": 7, "failed": {}}'),
        ("*.json", b'{"digest": "x", "failed": 7}'),
    ],
)
def test_a_damaged_index_is_made_again(tars, tmp_path, caplog, name, content):
    index = tar_index.open_index(tars, [tmp_path])
    (file,) = tmp_path.glob(name)
    data = bytearray(file.read_bytes())
    data[-30] ^= 64
    changed = {"cut": data[:-40], "flip": data}.get(content, content)
    file.unlink() if changed is None else file.write_bytes(changed)
    again = tar_index.open_index(tars, [tmp_path])
    assert "is damaged" in caplog.text
    assert again.digest == index.digest and len(again) == len(index)
    caplog.clear()
    tar_index.open_index(tars, [tmp_path])
    assert "is damaged" not in caplog.text


@pytest.mark.parametrize("size", [b"-1536", b"x", b""])
def test_a_pax_header_without_a_size_is_refused(tmp_path, size):
    """One below zero would lead back to where it stands, for ever."""
    record = b" size=" + size + b"\n"
    record = b"%d%b" % (len(record) + 2, record)
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    member = tarfile.TarInfo("x.jpg").tobuf(tarfile.USTAR_FORMAT)
    data = header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + member
    (tmp_path / "a.tar").write_bytes(data + bytes(1024))
    with pytest.raises(UsageError, match="a pax header is damaged"):
        tar_headers.scan_tar(tmp_path / "a.tar")
