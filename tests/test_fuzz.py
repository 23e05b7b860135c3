"""A few mutations of every border; `python -m tests.fuzz` makes many."""

import pytest

from tests import fuzz


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.BORDERS)
def test_mutated_files_are_refused_by_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    border = fuzz.Border(name, tmp_path / name)
    outcomes = [border.run(seed) for seed in range(fuzz.IN_TESTS[name])]
    assert "refused" in outcomes


def test_a_fault_is_found_and_files_are_put_back(tmp_path, monkeypatch):
    border = fuzz.Border("images", tmp_path / "images")
    monkeypatch.setattr(border.module, "open_it", lambda folder: 1 / 0)
    with pytest.raises(fuzz.FaultError, match="images 0: .*ZeroDivisionError"):
        border.run(0)
    monkeypatch.setattr(border.module, "open_it", lambda folder: int("x"))
    with pytest.raises(fuzz.FaultError, match="ValueError names no file"):
        border.run(1)
    for path, content in border.files.items():
        assert path.read_bytes() == content
