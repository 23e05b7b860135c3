"""Adapters: what is trained, what is kept, and that merging changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unclip_jax.models import lora
from unclip_jax.stages.lora import ATTENTION, LoraConfig, LoraStage
from unclip_jax.training import state as train_state
from unclip_jax.training.run_config import read_config
from unclip_jax.training.train_step import make_step

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


PARAMS = {
    "attn": {
        "q": {"kernel": normal(5, 4), "bias": normal(4)},
        "context_k": {"kernel": normal(5, 4)},
        "out": {"kernel": normal(4, 5)},
    },
    "blocks": {"attn": {"v": {"kernel": normal(3, 5, 4)}}},
    "conv": {"q": {"kernel": normal(3, 3, 4, 4)}},
    "fc": {"kernel": normal(5, 4)},
    "space": {"mean": normal(4)},
}
ADAPTED = {k: v for k, v in PARAMS.items() if k != "conv"}


class Stage:
    """A linear map through every kernel."""

    batch_spec = {"x": ((5,), "float32")}

    def init(self, rng):
        del rng
        return jax.tree.map(jnp.asarray, ADAPTED)

    def loss(self, params, rng, batch):
        del rng
        x = batch["x"] @ params["attn"]["q"]["kernel"] + params["attn"]["q"]["bias"]
        x = x @ params["attn"]["out"]["kernel"]
        x = x @ params["blocks"]["attn"]["v"]["kernel"].sum(0) - params["space"]["mean"]
        return jnp.square(x).mean(), {}


def test_adapters_are_products_of_the_kernels_shapes():
    adapters = lora.init_adapters(jax.random.key(0), ADAPTED, 2, ATTENTION)
    shapes = jax.tree.map(
        jnp.shape, adapters, is_leaf=lambda x: not isinstance(x, dict)
    )
    assert shapes == {
        "attn": {
            "q": {"a": (5, 2), "b": (2, 4)},
            "context_k": {"a": (5, 2), "b": (2, 4)},
            "out": {"a": (4, 2), "b": (2, 5)},
        },
        "blocks": {"attn": {"v": {"a": (3, 5, 2), "b": (3, 2, 4)}}},
    }
    assert np.abs(adapters["attn"]["q"]["a"]).max() <= 5**-0.5
    merged = lora.merge_adapters(ADAPTED, adapters, 1.0)
    jax.tree.map(np.testing.assert_array_equal, merged, ADAPTED)  # b is zero


def test_merging_adds_the_scaled_products():
    adapters = {"blocks": {"attn": {"v": {"a": normal(3, 5, 2), "b": normal(3, 2, 4)}}}}
    merged = lora.merge_adapters(PARAMS, adapters, 0.5)
    pair = adapters["blocks"]["attn"]["v"]
    expected = np.einsum("nir,nro->nio", pair["a"].astype(float), pair["b"]) / 2
    found = merged["blocks"]["attn"]["v"]["kernel"]
    np.testing.assert_allclose(
        found - PARAMS["blocks"]["attn"]["v"]["kernel"], expected, atol=1e-6
    )
    assert merged["attn"] is PARAMS["attn"] and isinstance(found, np.ndarray)


@pytest.mark.parametrize(
    ("rank", "targets", "message"),
    [
        (2, "nothing", "found in no kernel; there are attn/context_k/kernel"),
        (2, ATTENTION, "found in conv/q/kernel, of shape .*only dense"),
        (5, "attn/q/", "rank 5: attn/q/kernel is only 5 x 4"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(rank, targets, message):
    with pytest.raises(ValueError, match=message):
        lora.init_adapters(jax.random.key(0), PARAMS, rank, targets)


def test_a_step_changes_adapters_alone():
    """The optimizer and the average know of nothing else."""
    stage, tx = LoraStage(Stage(), LoraConfig(rank=2, alpha=4.0)), optax.adam(0.1)
    state = jax.jit(lambda key: train_state.init_state(stage, tx, key))(
        jax.random.key(0)
    )
    batch, step = {"x": normal(8, 5)}, jax.jit(make_step(stage, tx, 0.9, 1))
    before, first = state, None
    for _ in range(3):
        state, metrics = step(state, jax.random.key(1), batch)
        first = metrics["loss"] if first is None else first
    assert metrics["loss"] < first
    jax.tree.map(np.testing.assert_array_equal, state.frozen, ADAPTED)
    np.testing.assert_array_equal(
        state.params["of_data"]["space"]["mean"], ADAPTED["space"]["mean"]
    )
    changed = state.params["adapters"]["attn"]["q"]["b"]
    assert np.abs(changed).max() > 0
    kept = jax.tree.structure(state.params)
    assert jax.tree.structure(before.opt_state[0].mu) == kept
    assert jax.tree.structure(state.ema) == kept
    merged = stage.merge(**train_state.joined(state.params, state.frozen))
    direct = Stage().loss(merged, None, batch)[0]
    again = step(state, jax.random.key(1), batch)[1]["loss"]
    np.testing.assert_allclose(direct, again, rtol=1e-6)
    delta = merged["attn"]["q"]["kernel"] - ADAPTED["attn"]["q"]["kernel"]
    pair = state.params["adapters"]["attn"]["q"]
    np.testing.assert_allclose(delta, 2 * pair["a"] @ pair["b"], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "clip"}, "'clip' has no adapters"),
        ({"init_from": ""}, "need something to adapt"),
        ({"lora": {"rank": -1}}, "rank must be at least 0"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes, message):
    config = {
        "stage": "decoder",
        "data": {},
        "model": {},
        "steps": 1,
        "batch_size": 1,
        "optimizer": {"learning_rate": 1.0},
        "init_from": "folder",
        "lora": {"rank": 2},
    }
    with pytest.raises(ValueError, match=message):
        read_config({**config, **changes})
