"""Bits per dimension from a config: what is written, and mistakes."""

import json
import pathlib
import types

import numpy as np
import pytest

from unclip_jax import config as config_lib
from unclip_jax.evaluation import bits_per_dim, records
from unclip_jax.evaluation.runner import evaluate

CONFIG = pathlib.Path(__file__).parents[2] / "configs/icons/bits_per_dim.py"


class Records:
    fingerprint, image_size = "records", 8
    manifest = {"clip_fingerprint": "a clip"}

    def __init__(self, config):
        del config

    def __len__(self):
        return 30

    def __getitem__(self, i):
        image = np.full((8, 8, 3), i, np.uint8)
        return {"caption": str(i), "clip_image": np.ones(4), "image": image}


@pytest.fixture
def model(monkeypatch):
    """Stands for an UnCLIP whose images have as many bits as they are bright."""
    monkeypatch.setattr(records, "make_source", Records)

    def bits(model, prompts, embeddings, images, seed, progress):
        assert [int(prompt) for prompt in prompts] == images[:, 0, 0, 0].tolist()
        assert embeddings.shape == (len(prompts), 4) and seed == 5
        return images[:, 0, 0, 0].astype(np.float32)

    monkeypatch.setattr(bits_per_dim, "bits_per_dim", bits)
    clip = types.SimpleNamespace(clip_fingerprint="a clip")
    stack = types.SimpleNamespace(part={"clip": clip}.get)
    return types.SimpleNamespace(stack=stack, draw_size=8, fit_for_decoder=np.stack)


def load(**changes):
    config = config_lib.load(CONFIG).unlock()
    for key, value in {"count": 20, "seed": 5, **changes}.items():
        config[key] = value
    return config


def test_the_mean_over_drawn_images_is_written(model, tmp_path):
    lines = []
    results = evaluate(load(), tmp_path, model=model, log=lines.append)
    rows = np.sort(np.random.default_rng(5).choice(30, 20, replace=False))
    assert results["bits_per_dim"] == pytest.approx(rows.mean())
    assert results["stderr"] == pytest.approx(rows.std() / np.sqrt(20))
    assert results["n"] == 20 and results["clip_fingerprint"] == "a clip"
    assert json.loads((tmp_path / "bits_per_dim.json").read_text()) == results
    assert f"{rows.mean():.4f} ± " in lines[0]


def test_mistakes_before_anything_is_computed(model, tmp_path, monkeypatch):
    def fails(match, **changes):
        with pytest.raises(ValueError, match=match):
            evaluate(load(**changes), tmp_path / "out", model=model, log=len)

    fails("unknown key 'cuont' in config: did you mean 'count'", cuont=1)
    fails("config.count must be at least 1", count=0)
    fails("config.count = 31, but the data has 30", count=31)
    fails("did you mean 'batch_size'", bits_per_dim={"batch_siz": 1})
    with pytest.raises(ValueError, match="--images is not used with.*bits_per_dim"):
        evaluate(load(), tmp_path / "out", images="x", model=model, log=len)
    monkeypatch.setattr(Records, "image_size", None)
    fails("have no images")
    assert not (tmp_path / "out").exists()
