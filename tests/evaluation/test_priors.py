"""Comparing priors: the rows, what they are read against, and mistakes."""

import inspect
import json
import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_variables
from unclip_jax import config as config_lib
from unclip_jax import models
from unclip_jax.evaluation import priors, records
from unclip_jax.evaluation.runner import evaluate
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.options import PriorOptions, names
from unclip_jax.models import codebook

CONFIG = pathlib.Path(__file__).parents[2] / "configs/icons/priors.py"
N, D = 60, 6
RNG = np.random.default_rng(0)
IMAGE = (RNG.standard_normal((N, D)) * [5, 3, 2, 1, 1, 1]).astype(np.float32)
TEXT = (IMAGE + RNG.standard_normal((N, D))).astype(np.float32)


class Records:
    """Embeddings whose captions are their numbers."""

    fingerprint = "records"
    manifest = {"clip_fingerprint": "a clip"}

    def __init__(self, config):
        del config

    def __len__(self):
        return N

    def __getitem__(self, i):
        row = {"clip_image": IMAGE[i], "clip_text": TEXT[i]}
        return {"caption": str(i), **row}


class Model:
    """A diffusion prior that adds noise to the truth; the other one says nothing."""

    def __init__(self, part):
        clip = types.SimpleNamespace(clip_fingerprint="a clip")
        parts = {"clip": clip, "ar_prior": part}
        self.stack = types.SimpleNamespace(parts=parts, part=parts.get)
        self.asked = []

    def sample_embeddings(self, captions, seed, **options):
        self.asked.append((seed, options["prior"]))
        if options["prior"] == "autoregressive":
            return np.ones((len(captions), D), np.float32)
        rows = [int(caption) for caption in captions]
        noise = np.random.default_rng(seed).standard_normal((len(rows), D))
        return IMAGE[rows] + noise


@pytest.fixture(scope="module")
def model():
    text = {"vocab_size": 9, "context_length": 4, "eot_id": 8}
    sizes = {"width": 8, "depth": 1, "num_heads": 2, "context": 12}
    sizes |= {"text_width": 8, "text_depth": 1, "text_heads": 2}
    codes = {"num_components": 4, "num_buckets": 16}
    module = models.build("ar_prior", {"embed_dim": D, **text, **sizes, **codes})
    z, tokens, drop = jnp.zeros((1, D)), jnp.zeros((1, 4), int), jnp.zeros(1, bool)
    params = random_variables(module, z, tokens, z, drop)["params"]
    fitted = codebook.fit(IMAGE, RNG.uniform(-1, 1, N), 4, 16)
    params = {**params, "codebook": fitted}
    return Model(types.SimpleNamespace(module=module, params=params))


def load(**changes):
    config = config_lib.load(CONFIG).unlock()
    for key, value in {"count": 40, **changes}.items():
        config[key] = value
    return config


def test_rows_and_what_to_read_them_against(model, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "make_source", Records)
    lines = []
    found = evaluate(load(seed=3), tmp_path, model=model, log=lines.append)
    assert sorted(model.asked) == [(3, "autoregressive"), (3, "diffusion")]
    assert found["true embedding"]["to_true"] == pytest.approx(1)
    assert 0.95 < found["its codes"]["to_true"] < 0.9999
    assert 0.8 < found["diffusion"]["to_true"] < found["its codes"]["to_true"]
    # a constant is as far from all: chance
    assert found["mean embedding"]["rank"] == pytest.approx(0.5, abs=0.15)
    assert found["mean embedding"]["to_true"] < 0.5
    assert found["autoregressive"]["top1"] < 0.1 < found["diffusion"]["top1"]
    assert found["text embedding"]["to_text"] == pytest.approx(1)
    assert abs(found["another caption's"]["to_true"]) < 0.5
    written = json.loads((tmp_path / "priors.json").read_text())
    assert written["rows"] == found and written["n"] == 40
    assert "to_true" in lines[-2] and lines[-2].count("\n") == 1 + len(found)


def test_mistakes_before_anything_is_drawn(model, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "make_source", Records)

    def fails(match, **changes):
        with pytest.raises(ValueError, match=match):
            priors.compare_priors(load(**changes), tmp_path / "out", model=model)

    fails("unknown key 'modle' in config: did you mean 'model'", modle="x")
    fails("config.count must be at least 2", count=1)
    fails("config.count = 61, but the data has 60", count=61)
    fails("config.priors is empty", priors={})
    typo = {"a": {"prior": "diffusion", "guidence": 1.0}}
    fails("'guidence' in config.priors.a: did you mean 'guidance'", priors=typo)
    monkeypatch.setattr(Records, "manifest", {"clip_fingerprint": "another clip"})
    fails("are of the CLIP another clip")
    monkeypatch.setattr(Records, "manifest", {})
    fails("has no embeddings: make records")
    assert not (tmp_path / "out").exists()


def test_unclip_takes_what_the_config_may_set():
    offered = inspect.signature(UnCLIP.sample_embeddings).parameters
    assert {*names(PriorOptions), "prompts", "seed"} <= {*offered}
