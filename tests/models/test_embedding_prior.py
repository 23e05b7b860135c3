"""The embedding prior: the paper's sequence, and what may not change its output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_params
from unclip_jax import models
from unclip_jax.errors import UsageError
from unclip_jax.models import conditions
from unclip_jax.models.embedding_prior import EmbeddingPrior, example_conditions

SIZES = {"width": 16, "depth": 1, "num_heads": 2}
CONDITIONS = {
    "voxels": {"kind": "vector", "shape": (7,), "masked": True},
    "states": {"kind": "sequence", "shape": (4, 5), "masked": True},
    "ids": {"kind": "tokens", "shape": (3,), "dtype": "int32", "size": 9},
    "label": {"kind": "class", "shape": (), "dtype": "int32", "size": 5},
}
B = 4


def make(shape=(6,), described=CONDITIONS, **fields):
    fields = {**SIZES, "target_shape": shape, "conditions": described, **fields}
    model = models.build("embedding_prior", fields)
    noised = jnp.zeros((1, *shape)), jnp.zeros(1, int)
    noised = (None, None) if model.single_pass else noised
    inputs = *noised, example_conditions(model), jnp.zeros(1, bool)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return model, random_params(shapes["params"])


def inputs(shape=(6,), seed=0):
    rng = np.random.default_rng(seed)

    def normal(*size):
        return rng.standard_normal((B, *size)).astype(np.float32)

    batch = {
        "voxels": normal(7),
        "voxels_mask": np.ones(B, bool),
        "states": normal(4, 5),
        "states_mask": np.arange(4)[None] < np.array([4, 3, 2, 4])[:, None],
        "ids": np.array([[1, 2, 3], [4, -1, -1], [5, 6, -1], [7, 8, 0]]),
        "label": np.array([0, 1, 4, 2]),
    }
    return normal(*shape), np.array([0, 5, 9, 100]), batch


def apply(model, params, x_t, t, batch, drop=None):
    drop = np.zeros(B, bool) if drop is None else drop
    return np.asarray(model.apply({"params": params}, x_t, t, batch, drop))


def test_on_captions_it_is_the_papers_prior():
    """The same parameters under other names, the same output: 1e-6."""
    length, eot = 5, 30
    sizes = {**SIZES, "depth": 2}
    paper = models.DiffusionPrior(
        embed_dim=6, vocab_size=31, context_length=length, eot_id=eot, **sizes
    )
    x_t, t, _ = inputs()
    tokens = np.random.default_rng(1).integers(0, 29, (B, length))
    tokens[:, -1], tokens[1, 2] = eot, eot
    text, no = inputs(seed=2)[0], np.zeros(B, bool)
    shapes = jax.eval_shape(paper.init, jax.random.key(0), x_t, t, tokens, text, no)
    theirs = random_params(shapes["params"])
    caption = {"kind": "tokens", "shape": (length,), "size": 31, "eot_id": eot}
    described = {
        "tokens": caption | {"dtype": "int32"},
        "clip_text": {"kind": "vector", "shape": (6,), "position": 1},
    }
    model, params = make(described=described, **sizes)
    same = ("space", "positional_embedding", "time_1", "time_2", "transformer")
    params |= {name: theirs[name] for name in (*same, "ln_final")}
    params["query"] = theirs["query"][None]
    params["noised_in"], params["out"] = (
        theirs["clip_image_in"],
        theirs["clip_image_out"],
    )
    params["condition_tokens"]["embed"] = theirs["token_embedding"]
    params["condition_clip_text"]["in"] = theirs["clip_text_in"]
    identity = {"mean": np.zeros(6, np.float32), "std": np.ones(6, np.float32)}
    params["condition_clip_text"]["space"] = identity
    expected = paper.apply({"params": theirs}, x_t, t, tokens, text, no)
    batch = {"tokens": tokens, "clip_text": text}
    found = apply(model, params, x_t, t, batch)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (3, 6)], ids=["vector", "grid"])
@pytest.mark.parametrize("fields", [{}, {"causal": False, "queries": False}], ids=str)
def test_what_is_not_there_changes_nothing(shape, fields):
    """Padding, masked rows, dropped conditions; each of what is there does."""
    model, params = make(shape, **fields)
    x_t, t, batch = inputs(shape)
    first = apply(model, params, x_t, t, batch)
    assert first.shape == (B, *shape) and first.dtype == np.float32
    states = batch["states"] + 100 * ~batch["states_mask"][..., None]
    again = apply(model, params, x_t, t, batch | {"states": states})
    np.testing.assert_allclose(again, first, atol=1e-5)
    ids = np.where(batch["ids"] < 0, -7, batch["ids"])
    again = apply(model, params, x_t, t, batch | {"ids": ids})
    np.testing.assert_allclose(again, first, atol=1e-5)

    missing = batch | {"voxels_mask": np.array([True, False, True, True])}
    one = apply(model, params, x_t, t, missing)
    drop = {"voxels": ~missing["voxels_mask"]}
    np.testing.assert_allclose(apply(model, params, x_t, t, batch, drop), one, 1e-5)
    other = missing | {"voxels": batch["voxels"] + 5 * ~missing["voxels_mask"][:, None]}
    np.testing.assert_allclose(apply(model, params, x_t, t, other), one, atol=1e-5)
    changed = np.abs(one - first).reshape(B, -1).max(1) > 1e-4
    assert changed.tolist() == [False, True, False, False]

    nothing = apply(model, params, x_t, t, batch, np.ones(B, bool))
    other = inputs(shape, seed=3)[2] | {"ids": batch["ids"][::-1].copy()}
    again = apply(model, params, x_t, t, other, np.ones(B, bool))
    np.testing.assert_allclose(again, nothing, atol=1e-5)
    for name in CONDITIONS:
        changed = batch | {
            name: (batch[name] + 1) % 5 if name in ("ids", "label") else -batch[name]
        }
        assert np.abs(apply(model, params, x_t, t, changed) - first).max() > 1e-4, name


def test_one_pass_needs_no_noise():
    model, params = make((3, 6), single_pass=True)
    _, _, batch = inputs()
    out = apply(model, params, None, None, batch)
    assert out.shape == (B, 3, 6) and "time_1" not in params


def test_floats_are_standardized_by_constants():
    model, params = make()
    x_t, t, batch = inputs()
    first = apply(model, params, x_t, t, batch)
    space = params["condition_voxels"]["space"]
    scaled = {"mean": 3 * space["mean"] + 1, "std": 3 * space["std"]}
    params["condition_voxels"] |= {"space": scaled}
    again = apply(model, params, x_t, t, batch | {"voxels": 3 * batch["voxels"] + 1})
    np.testing.assert_allclose(again, first, atol=1e-5)

    def total(params):
        return model.apply({"params": params}, x_t, t, batch, np.zeros(B, bool)).sum()

    grads = jax.grad(total)(params)
    assert not any(np.abs(g).max() for g in grads["condition_voxels"]["space"].values())


def test_repeats_are_drawn_or_averaged():
    described = {"scans": conditions.Condition("repeats", (3, 2), masked=True)}
    x = np.random.default_rng(0).standard_normal((B, 3, 2)).astype(np.float32)
    mask = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    batch = {"scans": np.where(mask[..., None], x, np.nan), "scans_mask": mask}
    mean = conditions.merge_repeats(described, batch)
    expected = [x[0].mean(0), x[1, [0, 2]].mean(0), x[2, 1], [0, 0]]
    np.testing.assert_allclose(mean["scans"], expected, atol=1e-6)
    assert mean["scans_mask"].tolist() == [True, True, True, False]
    counts = np.zeros((2, 3))
    for seed in range(40):
        drawn = conditions.merge_repeats(described, batch, jax.random.key(seed))
        for row in range(2):
            hit = np.isclose(drawn["scans"][row], x[row]).all(1)
            assert hit.sum() == 1 and mask[row, hit]
            counts[row] += hit
    assert (counts[mask[:2]] > 3).all()


def test_bfloat16_stays_finite_on_large_and_equal_inputs():
    """Standardized or not, of any scale, half of it padding: finite, with gradients."""
    model, params = make((3, 6))
    module = model.clone(dtype=jnp.bfloat16)
    x_t, t, batch = inputs((3, 6))
    batch |= {"voxels": np.full((B, 7), 3e4, np.float32), "states": 0 * batch["states"]}
    batch["states_mask"] = np.zeros((B, 4), bool)

    def loss(params):
        out = module.apply({"params": params}, x_t, t, batch, np.zeros(B, bool))
        return jnp.square(out).mean()

    value, grads = jax.value_and_grad(loss)(params)
    assert value.dtype == jnp.float32
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, grads)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"target_shape": (0,)}, "none of them 0"),
        ({"target_shape": (2, 2, 2)}, "none of them 0"),
        ({"conditions": {}}, "at least one condition"),
        ({"single_pass": True, "queries": False}, "queries=False"),
        ({"conditions": {"a": {"kind": "vectr", "shape": (3,)}}}, "expected one of"),
        ({"conditions": {"a": {"kind": "vector", "shape": (3, 2)}}}, "1 axes"),
        ({"conditions": {"a": {"kind": "class", "shape": ()}}}, "number of classes"),
        ({"conditions": {"a": {"kind": "vector", "shap": (3,)}}}, "did you mean"),
    ],
)
def test_fields_that_do_not_fit_are_refused(change, message):
    fields = {"target_shape": (6,), "conditions": CONDITIONS, **SIZES, **change}
    model = EmbeddingPrior(**fields)
    x_t, t, batch = inputs()
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), x_t, t, batch, np.zeros(B, bool))


def test_a_missing_condition_is_named():
    model, params = make()
    x_t, t, batch = inputs()
    del batch["label"]
    with pytest.raises(UsageError, match="needs the condition 'label'"):
        apply(model, params, x_t, t, batch)
