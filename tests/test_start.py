"""The benchmark of what a user waits for at the start."""

import importlib.util
import json
import types

import pytest

from benchmarks import start
from tests.tiny_export import write_export
from unclip_jax.errors import UsageError


def make_args(**given):
    values = {"model": "tiny", "prompt": "a heart", "repeats": 2, "out": ""}
    return types.SimpleNamespace(**values | given)


@pytest.mark.slow
def test_everything_is_timed_once(tmp_path):
    has_page = importlib.util.find_spec("gradio") is not None
    model = str(write_export(tmp_path / "exports" / "tiny"))
    args = make_args(model=model, page=has_page)
    seconds = dict(start.time_all(args, str(tmp_path)))
    names = ["help", "console", "import", "load", "text2image"]
    names += ["page", "page, first", "page, second"] if has_page else []
    assert [*seconds] == names
    assert all(wall > 0 and cpu >= 0 for wall, cpu in seconds.values())
    assert seconds["help"] < seconds["console"]
    assert (tmp_path / "image.png").is_file()


def test_medians_without_the_run_that_fills_the_cache(tmp_path, capsys, monkeypatch):
    runs = iter([9.0, 1.0, 3.0])
    monkeypatch.setattr(
        start, "time_all", lambda args, folder: [("console", (next(runs), 0.5))]
    )
    out = tmp_path / "start.json"
    start.main(make_args(out=str(out)))
    assert json.loads(out.read_text()) == {"console": [[1.0, 0.5], [3.0, 0.5]]}
    assert "2.00 (1.00 to 3.00)    0.50 (0.50 to 0.50)" in capsys.readouterr().out


def test_mistakes_are_refused():
    with pytest.raises(UsageError, match="--repeats must be at least 1, got 0"):
        start.main(make_args(repeats=0))
    with pytest.raises(
        UsageError, match="sample --model=nowhere .*failed: error: no prompts"
    ):
        start.time_command(start.module("sample", "--model=nowhere", "--out=x.png"))
