"""Files are whole or absent, also when writing fails; hashes are those of sha256sum."""

import hashlib
import json
import os
import random
import stat

import numpy as np
import pytest

from unclip_jax import files


def write_array(file):
    np.save(file, np.arange(3))


@pytest.mark.parametrize("content", ["naïve\n", b"\0\xff", write_array])
def test_writes_over_what_was_there_and_leaves_nothing_else(tmp_path, content):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    files.atomic_write(path, content)
    if callable(content):
        np.testing.assert_array_equal(np.load(path), np.arange(3))
    else:
        assert path.read_bytes() == (
            content.encode() if isinstance(content, str) else content
        )
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    files.atomic_write(tmp_path / "ours", "")
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("plain", "ours")]
    assert modes[0] == modes[1]


def test_a_failure_keeps_the_old_file(tmp_path):
    def fail(file):
        file.write(b"half")
        raise RuntimeError("full")

    files.atomic_write(tmp_path / "a", "old")
    with pytest.raises(RuntimeError, match="full"):
        files.atomic_write(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_is_flushed_to_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def spy(*args, name=name, real=real):
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, spy)
    files.atomic_write(tmp_path / "a", "text")
    assert calls == ["fsync", "replace"]


def test_a_chosen_temporary_path_overwrites_what_a_killed_writer_left(tmp_path):
    partial = tmp_path / "a.partial"
    partial.write_text("left by a killed process")
    with files.atomic_path(tmp_path / "a", partial) as path:
        path.write_text("new")
    assert (tmp_path / "a").read_text() == "new" and os.listdir(tmp_path) == ["a"]


def test_the_hash_of_json_does_not_know_the_order_of_keys():
    digest = files.sha256_json({"b": [1, 2.5], "a": None})
    assert digest == files.sha256_json({"a": None, "b": [1, 2.5]})
    text = json.dumps({"a": None, "b": [1, 2.5]})
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert digest != files.sha256_json({"a": None, "b": [2.5, 1]})


def test_the_hash_of_an_array_knows_dtype_and_shape_but_no_strides():
    a = np.arange(6, dtype=np.int32).reshape(2, 3)
    digest = files.sha256_array(a)
    assert digest == files.sha256_array(np.asfortranarray(a))
    others = (a.reshape(3, 2), a.astype(np.int64), a.view(np.uint32), a + 1)
    assert digest not in {files.sha256_array(other) for other in others}


def test_the_hash_of_a_folder_knows_names_and_contents(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.py").write_text("1")
    (tmp_path / "b.txt").write_text("2")
    digest = files.sha256_folder(tmp_path)
    python = files.sha256_folder(tmp_path, "*.py")
    (tmp_path / "b.txt").write_text("3")
    assert files.sha256_folder(tmp_path) != digest
    assert files.sha256_folder(tmp_path, "*.py") == python
    (tmp_path / "in" / "a.py").rename(tmp_path / "in" / "c.py")
    assert files.sha256_folder(tmp_path, "*.py") != python
    with pytest.raises(FileNotFoundError, match="'nowhere' does not exist"):
        files.sha256_folder("nowhere")


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    "text, lines",
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\r\nb\rc\n\nd", ["a", "b", "c", "", "d"]),
        (
            "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\nh",
            ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg", "h"],
        ),
    ],
)
def test_lines_end_at_line_ends_only(text, lines):
    assert files.split_lines(text) == lines


def test_prompts_are_not_split_where_only_unicode_ends_a_line(tmp_path):
    from unclip_jax.generation.cli import listings

    file = tmp_path / "prompts.txt"
    file.write_text("a cat\u2028asleep\n\na dog\x0bawake\r\n", newline="")
    options = {"prompt": [], "prompts_file": str(file)}
    assert listings.prompts(options) == ["a cat\u2028asleep", "a dog\x0bawake"]


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_what_numpy_raises_for_damaged_files_is_known(tmp_path, save):
    """Of 600 mutations some raise tokenize.TokenError, zlib.error, BadZipFile ..."""
    path = tmp_path / "a"
    with path.open("wb") as file:
        save(file, np.arange(12.0).reshape(3, 4))
    data, kinds = path.read_bytes(), set()
    for seed in range(600):
        rng = random.Random(seed)
        changed = bytearray(data)
        for _ in range(rng.choice([1, 3])):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(changed[: rng.choice([None, None, rng.randrange(len(data))])])
        try:
            array = np.load(path, mmap_mode="r")
            if hasattr(array, "close"):
                with array:
                    dict(array)
        except files.NUMPY_DAMAGE as error:
            kinds.add(type(error).__name__)
    assert len(kinds) > 1
