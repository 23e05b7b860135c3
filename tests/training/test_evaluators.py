"""Evaluators named in a config: when they run, what they write, what is refused."""

import io
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax import stages
from unclip_jax.config import load
from unclip_jax.evaluation.evaluators import EVALUATORS
from unclip_jax.training.loop import train
from unclip_jax.training.run_config import check_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs/icons"
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import toy  # noqa: E402


class Stage(toy.Stage):
    """With embeddings: a row and its reconstruction."""

    def embed(self, params, rng, batch):
        x = batch["x"] + jnp.arange(16.0)
        out = jnp.tanh(x @ params["in"]["kernel"]) @ params["out"]["kernel"]
        return {"image": x + 0 * out, "text": x * 2}


def scores(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return {row["step"]: row for row in rows if "retrieval/text_to_image@1" in row}


def test_they_run_first_last_and_between(tmp_path):
    wanted = {"retrieval": {"every": 4, "count": 20}}
    config = toy.make_config(steps=6, evaluators=wanted)
    train(config, tmp_path, stage=Stage(), data=toy.Data(), stream=io.StringIO())
    found = scores(tmp_path)
    assert sorted(found) == [0, 4, 6]
    # text is the image, scaled: every one finds its own among 20 (two batches of 16)
    assert found[6]["retrieval/text_to_image@1"] == 1.0


def test_mistakes_are_refused(tmp_path):
    for given, message in (
        ({"retrieva": {}}, "did you mean 'retrieval'"),
        ({"retrieval": {"evry": 1}}, "did you mean 'every'"),
        ({"retrieval": {"every": 0}}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            check_config(toy.make_config(evaluators=given))
    config = toy.make_config(evaluators={"retrieval": {"every": 4}})
    with pytest.raises(ValueError, match="makes no embeddings"):
        train(config, tmp_path, stage=toy.Stage(), data=toy.Data())
    config = toy.make_config(evaluators={"prior": {"every": 4}})
    with pytest.raises(ValueError, match="needs predicted, true"):
        train(config, tmp_path / "b", stage=Stage(), data=toy.Data())


@pytest.mark.parametrize("stage, name", [("clip", "retrieval"), ("prior", "prior")])
def test_the_stages_embed_what_evaluators_need(stage, name):
    config = load(str(CONFIGS / f"{stage}.py"))
    info = dict(vocab_size=20, context_length=5, eot_id=19, image_size=32, embed_dim=8)
    info |= dict(embedding_mean=np.zeros(8), embedding_std=np.ones(8))
    info |= {k: v for k, v in config.model.items() if k in info}
    stage = stages.make_stage(config, info)
    batch = {
        k: jax.ShapeDtypeStruct((3, *shape), dtype)
        for k, (shape, dtype) in stage.batch_spec.items()
    }
    rng = jax.random.key(0)
    params = jax.eval_shape(stage.init, rng)
    found = jax.eval_shape(stage.embed, params, rng, batch)
    assert set(EVALUATORS[name].needs) <= set(found)
    (shape,) = {leaf.shape for leaf in found.values()}
    assert shape[0] == 3
