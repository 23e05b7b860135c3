"""The README's Python runs as it stands, on a tiny random model."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

from tests.generation.conftest import make_model
from unclip_jax import UnCLIP

README = pathlib.Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_python_of_the_readme_runs(monkeypatch, tmp_path, stack, resized):
    monkeypatch.chdir(tmp_path)  # it saves images
    code = re.search(r"```python\n(.+?)```", README.read_text("utf-8"), re.DOTALL)[1]
    long = {kind: resized(kind, num_steps=1000) for kind in ("prior", "decoder")}
    stack = dataclasses.replace(stack, parts={**stack.parts, **long})
    model = make_model(stack)
    monkeypatch.setattr(UnCLIP, "load", lambda folder: model)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    arrays = {k: v.shape for k, v in names.items() if isinstance(v, np.ndarray)}
    assert arrays == {
        "images": (2, 8, 8, 3),
        "variations": (2, 8, 8, 3),
        "path": (1, 8, 8, 8, 3),
        "blue": (1, 5, 8, 8, 3),
    }
