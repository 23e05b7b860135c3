"""Muon against an implementation in float64 NumPy, and its form against an SVD."""

import io
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers

from tests.training import toy
from unclip_jax.training.loop import train
from unclip_jax.training.muon import matrices
from unclip_jax.training.optimizer import OptimizerConfig, make_optimizer

SHAPES = {
    "block_0/fc_1/kernel": (6, 10),
    "block_0/out/kernel": (10, 6),
    "blocks/fc_1/kernel": (3, 4, 5),
    "conv_1/kernel": (3, 3, 2, 8),
    "conv_1/bias": (8,),
    "conv_in/kernel": (3, 3, 4, 8),
    "modulation": (2, 6),
}
OPTIONS = OptimizerConfig(0.01, weight_decay=0.1, b2=0.99, name="muon")


def nested(flat):
    tree = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = jax.tree_util.keystr
    return {name(k, simple=True, separator="/"): np.asarray(v) for k, v in leaves}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def newton_schulz(g):
    """Jordan et al. 2024: the quintic iteration, for (n, m)."""
    x = g / np.linalg.norm(g)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def orthogonalized(name, m):
    if name.startswith("blocks"):
        return np.stack([newton_schulz(one) for one in m])
    return newton_schulz(m.reshape(-1, m.shape[-1])).reshape(m.shape)


def reference(name, p, gradients, rate, decay, b2):
    """Parameters after steps along the gradients."""
    hidden = name.endswith("kernel") and not name.startswith("conv_in")
    m, v = np.zeros_like(p), np.zeros_like(p)
    for i, g in enumerate(gradients, 1):
        if hidden:
            m = 0.95 * m + 0.05 * g
            ahead = 0.95 * m / (1 - 0.95 ** (i + 1)) + 0.05 * g / (1 - 0.95**i)
            n, k = (4, 5) if name.startswith("blocks") else (p.size // p.shape[-1], 0)
            step = orthogonalized(name, ahead)
            step *= 0.2 * np.sqrt(max(n, k or p.shape[-1]))
        else:
            m, v = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * g**2
            step = (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - b2**i)) + 1e-8)
        p = p - rate * (step + (decay * p if name.endswith("kernel") else 0))
    return p


@pytest.fixture(scope="module")
def tx():
    return make_optimizer(OPTIONS, 10)


def test_three_steps_are_those_of_the_formulas(tx):
    start, gradients = draw(0), [draw(i) for i in (1, 2, 3)]
    params = jax.tree.map(jnp.float32, nested(start))
    state, update = tx.init(params), jax.jit(tx.update)
    for g in gradients:
        updates, state = update(jax.tree.map(jnp.float32, nested(g)), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    for name, found in flat(params).items():
        past = [g[name] for g in gradients]
        wanted = reference(name, start[name], past, 0.01, 0.1, 0.99)
        np.testing.assert_allclose(found, wanted, atol=2e-6, err_msg=name)


def test_a_step_is_the_orthogonal_factor_as_large_as_adams(tx):
    """Its singular vectors are the gradient's, its root mean square is near 0.2."""
    g = {"fc": {"kernel": jnp.float32(np.random.default_rng(0).normal(size=(64, 16)))}}
    zeros = jax.tree.map(jnp.zeros_like, g)
    step = np.asarray(tx.update(g, tx.init(g), zeros)[0]["fc"]["kernel"]) / -0.01
    u, _, vt = np.linalg.svd(g["fc"]["kernel"], full_matrices=False)
    inner = u.T @ step @ vt.T / (0.2 * 8)  # 8 = sqrt(64)
    np.testing.assert_allclose(inner - np.diag(np.diag(inner)), 0, atol=1e-5)
    assert (np.diag(inner) > 0.65).all() and (np.diag(inner) < 1.25).all()
    assert np.sqrt((step**2).mean()) == pytest.approx(0.2, rel=0.2)


def test_inputs_outputs_and_what_is_no_matrix_are_left_to_adam():
    shapes = {name: jax.ShapeDtypeStruct(s, "float32") for name, s in SHAPES.items()}
    axes = matrices(nested({**shapes, "out/kernel": shapes["conv_in/kernel"]}))
    found = flat(jax.tree.map(lambda a: a is None, axes, is_leaf=is_axes))
    kept = {name for name, left in found.items() if left}
    assert kept == {"conv_1/bias", "conv_in/kernel", "modulation", "out/kernel"}


def is_axes(value):
    return value is None or isinstance(value, MuonDimensionNumbers)


class Deeper(toy.Stage):
    """The toy's names would all be inputs and outputs."""

    def init(self, rng):
        params = super().init(rng)
        return {"a": {"in_1": params["in"], "out_1": params["out"]}}

    def loss(self, params, rng, batch):
        params = {"in": params["a"]["in_1"], "out": params["a"]["out_1"]}
        return super().loss(params, rng, batch)


@pytest.mark.slow
def test_sharded_and_resumed_it_is_bit_identical(tmp_path):
    """Eight devices, matrices, momentum and averages divided over four."""
    options = dict(learning_rate=0.01, name="muon", grad_clip_norm=1.0)
    options |= dict(schedule="warmup_stable_decay", warmup_steps=2)
    rules = ((r"(in|out)_1/kernel", ("fsdp", None)),)
    options = dict(optimizer=options, ema_profiles=(0.05, 0.1))

    def run(name, steps, fsdp=4):
        divided = rules if fsdp > 1 else ()
        config = toy.make_config(12, fsdp, sharding_rules=divided, **options)
        data = Stopping(steps)
        stream = io.StringIO()
        return train(config, tmp_path / name, stage=Deeper(), data=data, stream=stream)

    whole = run("whole", None)
    assert int(run("parts", 6).step) < 12
    again = run("parts", None)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), whole, again)
    assert all(jax.tree.leaves(same)) and int(again.step) == 12
    table = (tmp_path / "whole" / "sharding.txt").read_text()
    assert "fsdp" in next(row for row in table.splitlines() if "/mu/a/in_1" in row)
    alone = run("alone", None, fsdp=1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        jax.device_get(alone.params),
        jax.device_get(whole.params),
    )


class Stopping(toy.Data):
    """Sends SIGTERM before a batch."""

    def __init__(self, at):
        super().__init__()
        self._at = at

    def batches(self, *args, **kwargs):
        for i, batch in enumerate(super().batches(*args, **kwargs)):
            if i == self._at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch
