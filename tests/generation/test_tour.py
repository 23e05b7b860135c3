"""docs/tour.ipynb shows every mode; tests/test_packaging.py runs it."""

import json
import pathlib

import pytest

from unclip_jax.generation.editing import Editing

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
