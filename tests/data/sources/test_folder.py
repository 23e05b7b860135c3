"""Folders of pictures with captions beside them or in a table."""

import errno
import json
import logging
import os
import socket
import unicodedata

import pytest

from unclip_jax.data.sources import BadRecord, LeftOut, make_source


def source(path, **options):
    return make_source(
        {"source": "folder", "path": str(path), "image_size": 8, **options}
    )


@pytest.fixture
def folder(tmp_path, picture):
    root = tmp_path / "mine"
    (root / "more").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.JPG", "more/c.png", "d.png"]):
        kind = "JPEG" if name.endswith("JPG") else "PNG"
        (root / name).write_bytes(picture(i, kind=kind))
    (root / "notes.md").write_text("not an image")
    return root


def write_texts(folder):
    (folder / "a.txt").write_text("an a\nalso an a\n\n")
    (folder / "b.txt").write_text("ein Bär", encoding="utf-8")
    (folder / "more" / "c.txt").write_text("a c")


def test_text_files(folder, number_of):
    write_texts(folder)
    data = source(folder)
    assert len(data) == 3 and data.failed == {"no caption": 1}
    assert [data[i]["key"] for i in range(3)] == ["a", "b", "more/c"]
    assert [number_of(data[i]["image"]) for i in range(3)] == [1, 0, 2]
    assert data[0]["captions"] == ("an a", "also an a")
    assert data.captions() == ["an a", "also an a", "ein Bär", "a c"]
    before = data.fingerprint
    (folder / "b.txt").write_text("a bear")
    assert source(folder).fingerprint != before


def test_tables(folder, number_of):
    lines = 'file_name,caption\nb.png,"a b, first"\nmore/c.png,a c\nb.png,second\n'
    (folder / "metadata.csv").write_text(lines)
    data = source(folder)
    assert [data[i]["captions"] for i in range(2)] == [
        ("a b, first", "second"),
        ("a c",),
    ]
    assert number_of(data[1]["image"]) == 2
    rows = [{"file": "d.png", "text": ["a d", "the d"]}, {"file": "a.JPG", "text": "a"}]
    (folder / "other.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    data = source(folder, table="other.jsonl")
    assert data.captions() == ["a", "a d", "the d"]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"file": "x.png", "text": "a"}', "row 1: there is no image 'x.png'"),
        ('{"file": "a.JPG"}', "row 1: none of the columns captions, caption, text"),
        ('{"file": "a.JPG", "text": 3}', "row 1: 3 is neither a caption"),
        ("nonsense", "row 1: not JSON"),
    ],
)
def test_mistakes_in_tables_are_named(folder, line, message):
    (folder / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        source(folder)


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="none of the 4 images"):
        source(folder)
    with pytest.raises(FileNotFoundError, match="table .*/t.csv' does not exist"):
        source(folder, table="t.csv")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in"):
        source(tmp_path / "empty")
    write_texts(folder)
    (folder / "a.JPG").write_bytes((folder / "a.JPG").read_bytes()[:200])
    data = source(folder)
    with pytest.raises(BadRecord, match="'a' cannot be read: its image is damaged"):
        data[0]
    (folder / "b.png").unlink()
    with pytest.raises(BadRecord, match="b.png cannot be read"):
        data[1]


@pytest.fixture
def numbered(tmp_path, picture):
    """Three images with their text files."""
    root = tmp_path / "numbered"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.png").write_bytes(picture(i))
        (root / f"{i}.txt").write_text(f"number {i}")
    return root


def keys(data):
    return [data[i]["key"] for i in range(len(data))]


@pytest.mark.parametrize("also", ["table", ""])
def test_only_regular_files_are_opened(numbered, caplog, also):
    """FIFOs wait for a writer for ever, /dev/zero has no end."""
    os.mkfifo(numbered / "3.png")
    os.mkfifo(numbered / "0.txt.txt")
    os.symlink("/dev/zero", numbered / "4.png")
    os.symlink("/nowhere/5.png", numbered / "5.png")
    os.symlink("6.png", numbered / "6.png")  # to itself
    (numbered / "7.png").mkdir()
    here = os.getcwd()
    os.chdir(numbered)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("8.png")
        os.chdir(here)
        if also:
            table = "file_name,caption\n" + "".join(
                f"{i}.png,number {i}\n" for i in range(3)
            )
            (numbered / "metadata.csv").write_text(table)
        with caplog.at_level(logging.WARNING):
            data = source(numbered)
    assert keys(data) == ["0", "1", "2"] and data.failed == {}
    (message,) = [r.getMessage() for r in caplog.records]
    assert "6 names are no readable files" in message
    for part in ("3.png (a FIFO)", "4.png (a device)", "5.png (a link to nothing)"):
        assert part in message


def test_links_to_files_and_folders_are_followed_once(numbered, picture):
    (numbered / "more").mkdir()
    (numbered / "more" / "x.png").write_bytes(picture(7))
    (numbered / "more" / "x.txt").write_text("x")
    os.symlink("more", numbered / "a link before it")
    os.symlink(".", numbered / "all")
    os.symlink("..", numbered / "more" / "up")
    os.symlink("../..", numbered / "more" / "further up")
    os.symlink(numbered / "0.png", numbered / "copy.png")
    (numbered / "copy.txt").write_text("of 0")
    data = source(numbered)
    assert keys(data) == ["0", "1", "2", "copy", "more/x"]


def test_what_a_mac_adds_is_no_data(numbered):
    apple = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(range(128, 256))
    for folder in (numbered, numbered / "__MACOSX"):
        folder.mkdir(exist_ok=True)
        for name in ("._0.png", "._0.txt", "._9.jpg", "._9.txt"):
            (folder / name).write_bytes(apple)
    (numbered / "__MACOSX" / "5.png").write_bytes(apple)
    data = source(numbered)
    assert keys(data) == ["0", "1", "2"] and data.failed == {}


@pytest.mark.parametrize("suffix", [".TXT", ".Txt"])
def test_a_suffix_in_capitals_is_one_too(numbered, suffix):
    for i in range(3):
        (numbered / f"{i}.txt").rename(numbered / f"{i}{suffix}")
        (numbered / f"{i}.png").rename(numbered / f"{i}.PNG")
    assert source(numbered).captions() == ["number 0", "number 1", "number 2"]


def test_names_that_are_not_utf8_become_text(numbered, picture):
    name = os.fsdecode(b"caff\xe9")
    (numbered / f"{name}.png").write_bytes(picture(5))
    (numbered / f"{name}.txt").write_text("coffee")
    data = source(numbered)
    assert keys(data) == ["0", "1", "2", "caff\ufffd"]
    (numbered / f"{name}.png").write_bytes(b"torn")
    with pytest.raises(BadRecord) as caught:
        data[3]
    str(caught.value).encode()


@pytest.mark.parametrize("text", ["it\u2019s", "r\xe9sum\xe9", "na\xefve"])
def test_a_text_of_another_encoding_is_one_unreadable_example(numbered, text):
    (numbered / "1.txt").write_bytes(text.encode("cp1252"))
    data = source(numbered)
    assert len(data) == 3 and data[0]["caption"] == "number 0"
    with pytest.raises(BadRecord, match="'1'.*captions is not UTF-8"):
        data[1]
    assert data.captions() == ["number 0", "number 2"]


SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_captions_end_at_line_ends_only(numbered, separator):
    (numbered / "1.txt").write_text(f"one{separator}two\r\nthree\n", newline="")
    assert source(numbered)[1]["captions"] == ("one two", "three")
    rows = [{"file": f"{i}.png", "text": f"a{separator}{i}"} for i in range(2)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (numbered / "metadata.jsonl").write_text(lines)
    assert source(numbered).captions() == ["a 0", "a 1"]
    (numbered / "metadata.jsonl").unlink()
    (numbered / "metadata.csv").write_text(f"file,text\n0.png,a{separator}b\n")
    assert source(numbered).captions() == ["a b"]


def test_tables_may_write_names_in_another_way(numbered, picture):
    name = unicodedata.normalize("NFD", "é.png")
    (numbered / name).write_bytes(picture(3))
    lines = f"file_name,text\n./0.png,zero\n.//1.png,one\n{'é'}.png,accent\n"
    (numbered / "metadata.csv").write_text(lines, encoding="utf-8")
    assert source(numbered).captions() == ["zero", "one", "accent"]


@pytest.mark.parametrize(
    "table, message",
    [
        ("file_name,text\n0.png,a cat, asleep\n", "row 2: has more fields"),
        ("file_name,text\n0.png,a\n1.png,b,,\n", "row 3: has more fields"),
        ("file_name,text\n0.png,caff\xe9\n", "metadata.csv is not UTF-8"),
        ('{"file": ["0.png"], "text": "a"}', r"row 1: there is no image \['0"),
        ('{"file": "0.png", "text": {"en": "a"}}', "row 1: .* is neither a caption"),
        ('{"file": ' + 20000 * "[", "row 1: not JSON"),
    ],
)
def test_more_mistakes_in_tables_are_named(numbered, table, message):
    kind = "jsonl" if table.startswith("{") else "csv"
    (numbered / f"metadata.{kind}").write_bytes(table.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        source(numbered)


def test_long_captions_in_tables(numbered):
    caption = "word " * 30_000
    (numbered / "metadata.csv").write_text(f"file_name,text\n0.png,{caption}\n")
    assert source(numbered).captions() == [caption.strip()]


@pytest.mark.parametrize("text", ["", " \n\n", "\ufeff"])
def test_an_empty_text_leaves_its_example_out(numbered, text):
    (numbered / "1.txt").write_text(text, encoding="utf-8")
    with pytest.raises(LeftOut, match="no caption"):
        source(numbered)[1]


def test_a_folder_that_is_away_is_no_damaged_image(numbered, monkeypatch, tmp_path):
    data = source(numbered)
    with monkeypatch.context() as patch:

        def refuse(path):
            raise OSError(errno.EIO, "Input/output error", str(path))

        patch.setattr("pathlib.Path.read_bytes", refuse)
        with pytest.raises(OSError, match="Input/output"):
            data[0]
    numbered.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        data[0]
    (tmp_path / "away").rename(numbered)
    assert data[0]["key"] == "0"
