"""Evaluators named in a config: when they run, what they write, what is refused."""

import io
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import toy
from unclip_jax import stages
from unclip_jax.config import load
from unclip_jax.data import loader
from unclip_jax.data.sources import make_source
from unclip_jax.data_spec import DataSpec
from unclip_jax.evaluation import class_prompts
from unclip_jax.evaluation.evaluators import EVALUATORS, ZeroShotOptions
from unclip_jax.evaluation.metrics.retrieval import retrieval
from unclip_jax.evaluation.metrics.zero_shot import zero_shot_accuracy
from unclip_jax.training.loop import train
from unclip_jax.training.run_config import read_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs/icons"


class Stage(toy.Stage):
    """With embeddings: a row and its reconstruction."""

    def embed(self, params, rng, batch):
        x = batch["x"] + jnp.arange(16.0)
        out = jnp.tanh(x @ params["in"]["kernel"]) @ params["out"]["kernel"]
        return {"image": x + 0 * out, "text": x * 2}


def scores(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return {row["step"]: row for row in rows if "retrieval/text_to_image@1" in row}


@pytest.mark.slow
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
        ({"retrieval": {"every": 1, "count": 1}}, "count at least 2"),
        ({"zero_shot": {"every": 1, "labels": "noun"}}, "did you mean 'label'"),
    ):
        with pytest.raises(ValueError, match=message):
            toy.make_config(evaluators=given)
    config = toy.make_config(evaluators={"retrieval": {"every": 4}})
    with pytest.raises(ValueError, match="makes no embeddings"):
        train(config, tmp_path, stage=toy.Stage(), data=toy.Data())
    off = {"retrieval": {"every": 4, "count": 0}}
    assert toy.make_config(evaluators=off).evaluator_options() == {}
    config = toy.make_config(evaluators={"prior": {"every": 4}})
    with pytest.raises(ValueError, match="needs predicted, true"):
        train(config, tmp_path / "b", stage=Stage(), data=toy.Data())
    config = toy.make_config(evaluators={"zero_shot": {"every": 4}})
    with pytest.raises(ValueError, match="images and captions, but .* takes x"):
        train(config, tmp_path / "c", stage=Stage(), data=toy.Data())


TINY_CLIP = {"embed_dim": 8, "vision_width": 16, "vision_depth": 1, "text_width": 16}
ICONS = {"source": "icons", "split": "train", "image_size": 16, "nouns": 3}


@pytest.fixture
def clip_config():
    """configs/icons/clip.py on three nouns, 30 steps, with its evaluators."""
    config = load(str(CONFIGS / "clip.py"))
    with config.unlocked():
        config.data.update(ICONS)
        config.model.update({**TINY_CLIP, "text_depth": 1})
        config.update({"steps": 30, "batch_size": 16})
        for options in config.evaluators.values():
            options.count = 40
    return config


@pytest.mark.slow
def test_clip_is_scored_on_what_training_never_sees(clip_config, tmp_path):
    ema = train(read_config(clip_config), tmp_path, stream=io.StringIO()).ema
    found = scores(tmp_path)
    assert sorted(found) == [0, 30]
    # by hand: the average's embeddings of held-out icons, in the training's tokens
    data = loader.open_data(clip_config.data, tokenizer_dir=tmp_path / "tokenizer")
    stage = stages.make_stage(read_config(clip_config), data.spec)
    source = make_source({**clip_config.data.to_dict(), "split": "held_out"})
    examples = [source[i] for i in range(40)]
    templates = clip_config.evaluators.zero_shot.templates
    nouns = sorted({e["noun"] for e in examples})
    prompts = [t.format(noun) for noun in nouns for t in templates]
    captions = [e["caption"] for e in examples]

    @jax.jit
    def embed(images, tokens):
        return stage.model.apply({"params": ema}, images, tokens)

    images = np.stack([e["image"] for e in examples])
    image, text = embed(images, data.tokenizer.encode(captions))
    # Several captions have the same picture: text to image hangs on rounding errors.
    for k in (1, 5, 10):
        name = f"image_to_text@{k}"
        value = retrieval(image, text)[name]
        assert found[30][f"retrieval/{name}"] == pytest.approx(value, abs=1.01 / 40)
    rows = np.resize(images, (len(prompts), *images.shape[1:]))
    _, text = embed(rows, data.tokenizer.encode(prompts))
    text = text.reshape(len(nouns), len(templates), -1)
    labels = [nouns.index(e["noun"]) for e in examples]
    top1 = zero_shot_accuracy(image, text, np.array(labels))
    assert found[30]["zero_shot/top1"] == pytest.approx(top1, abs=1.01 / 40)
    assert found[30]["zero_shot/top5"] == 1.0  # of three nouns


def test_mistakes_about_classes_are_named():
    data = loader.open_data({**ICONS, "feed": "arrays"})
    for change, message in (
        ({"label": "nuon"}, "'nuon': the examples have .*noun"),
        ({"templates": ("a picture",)}, "with a {}"),
        ({"classes": ("umbrella", "heart")}, "lacks 'star'"),
    ):
        options = ZeroShotOptions(1, 30, **{"label": "noun", **change})
        with pytest.raises(ValueError, match=message):
            class_prompts.read(data, options, ("image", "tokens"))


def test_labels_may_be_codes():
    """As ImageNet's are: the config says what they are called."""

    class Data:
        source = [{"image": np.zeros((2, 2, 3), np.uint8), "caption": "n02"}] * 3
        tokenizer = types.SimpleNamespace(
            encode=lambda texts: np.array([*map(len, texts)])
        )

        def __len__(self):
            return 3

    names = {"n01": "tench", "n02": "rabbit"}
    options = ZeroShotOptions(1, classes=names, templates=("a {}", "the {}s"))
    arrays, about = class_prompts.read(Data(), options, ("image", "tokens"))
    assert about["labels"].tolist() == [1, 1, 1] and about["prompts"] == (2, 2)
    assert arrays["tokens"].tolist() == [7, 10, 8, 11] and len(arrays["image"]) == 3


@pytest.mark.parametrize("stage, name", [("clip", "retrieval"), ("prior", "prior")])
def test_the_stages_embed_what_evaluators_need(stage, name):
    config = load(str(CONFIGS / f"{stage}.py"))
    info = dict(vocab_size=20, context_length=5, eot_id=19, image_size=32, embed_dim=8)
    info |= dict(embedding_mean=np.zeros(8), embedding_std=np.ones(8))
    info |= {k: v for k, v in config.model.items() if k in info}
    stage = stages.make_stage(read_config(config), DataSpec(**info))
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
