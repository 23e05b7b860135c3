"""Folders of pictures with captions beside them or in a table."""

import json

import pytest

from unclip_jax.data.sources import BadRecord, make_source


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
    (root / "notes.md").write_text("not a picture")
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
        ('{"file": "x.png", "text": "a"}', "row 1: there is no picture 'x.png'"),
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
    with pytest.raises(FileNotFoundError, match="none of the 4 pictures"):
        source(folder)
    with pytest.raises(FileNotFoundError, match="table .*/t.csv' does not exist"):
        source(folder, table="t.csv")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no picture in"):
        source(tmp_path / "empty")
    write_texts(folder)
    (folder / "a.JPG").write_bytes((folder / "a.JPG").read_bytes()[:200])
    data = source(folder)
    with pytest.raises(BadRecord, match="'a' cannot be read: its image is damaged"):
        data[0]
    (folder / "b.png").unlink()
    with pytest.raises(BadRecord, match="b.png cannot be read"):
        data[1]
