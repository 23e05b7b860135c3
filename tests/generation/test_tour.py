"""docs/tour.ipynb: its cells run, one after the other, on a tiny random model."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from unclip_jax.gaussian import Gaussian
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.editing import Editing
from unclip_jax.generation.image_array import ImageArray

TOUR = pathlib.Path(__file__).parents[2] / "docs" / "tour.ipynb"
# Methods that draw, each of which the notebook shows.
SHOWN = ["text2image", "sample_embeddings", "decode", "variations", "interpolate"]
SHOWN += ["text_diff", "reconstruct", "inpaint", "img2img", "emb2emb"]
SHOWN += ["pca_reconstructions", "zero_shot"]


@pytest.fixture(scope="module")
def cells():
    notebook = json.loads(TOUR.read_text())
    assert notebook["nbformat"] == 4
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    return ["".join(cell["source"]) for cell in cells]


def test_every_mode_is_shown(cells):
    text = "\n".join(cells)
    assert all(hasattr(Editing, name) and f"model.{name}(" in text for name in SHOWN)


@pytest.mark.slow
def test_the_cells_run(cells, resized, stack, monkeypatch, tmp_path):
    """With the usual 1,000 timesteps, and statistics for the components."""
    kinds = ("clip", "prior", "decoder")
    parts = {kind: resized(kind, i, num_steps=1000) for i, kind in enumerate(kinds)}
    statistics = Gaussian(np.zeros(8), np.eye(8))
    tiny = dataclasses.replace(stack, parts=parts, statistics=statistics)
    model = UnCLIP(tiny, batch_size=8)
    monkeypatch.setattr(UnCLIP, "load", lambda folder: model)
    monkeypatch.chdir(tmp_path)
    names, last = {}, []
    for cell in cells:
        *lines, expression = cell.split("\n")
        try:  # what a notebook shows of a cell
            compile(expression, "cell", "eval")
            body = "\n".join(lines)
        except SyntaxError:
            body, expression = cell, "None"
        exec(compile(body, str(TOUR), "exec"), names)
        last.append(eval(expression, names))
    assert last[0] is model
    shown = [value for value in last if isinstance(value, ImageArray)]
    assert len(shown) >= 10 and all(value._repr_png_() for value in shown)
    assert {file.name for file in tmp_path.iterdir()} == {"hearts.png", "heart.png"}
