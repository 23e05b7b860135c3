import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax import models
from unclip_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer


def test_the_learning_rate_warms_up_and_decays():
    rate = learning_rate(OptimizerConfig(1.0, warmup_steps=4, schedule="cosine"), 20)
    np.testing.assert_allclose([rate(i) for i in range(4)], [0.25, 0.5, 0.75, 1.0])
    assert rate(4) == 1.0 and abs(rate(12) - 0.5) < 1e-6 and rate(20) < 1e-6


def test_constant_after_the_warm_up_by_default():
    rate = learning_rate(OptimizerConfig(0.5, warmup_steps=2), 20)
    assert [float(rate(i)) for i in (0, 1, 2, 19)] == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_weight_decay_is_for_the_weights_of_layers_only(scan_layers):
    clip = models.build(
        "clip",
        dict(
            embed_dim=4,
            image_size=8,
            patch_size=4,
            vision_width=8,
            vision_depth=2,
            vision_heads=2,
            vocab_size=9,
            context_length=4,
            text_width=8,
            text_depth=2,
            text_heads=2,
            eot_id=8,
            scan_layers=scan_layers,
        ),
    )
    inputs = jnp.zeros((1, 8, 8, 3), jnp.uint8), jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(clip.init, jax.random.key(0), *inputs)["params"]
    params = jax.tree.map(lambda s: jnp.ones(s.shape), shapes)
    tx = make_optimizer(OptimizerConfig(0.1, weight_decay=0.5), 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, jax.jit(tx.init)(params), params)
    shrunk = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(u.min())
        for path, u in jax.tree_util.tree_leaves_with_path(updates)
    }
    for name, change in shrunk.items():
        is_weight = re.search(
            r"(patch_embedding|projection|/(q|k|v|out|fc_1|fc_2))/kernel$", name
        )
        assert change == pytest.approx(-0.05 if is_weight else 0.0), name
    kept = [name for name, change in shrunk.items() if change == 0]
    for word in ("bias", "scale", "token_embedding", "positional", "class_embedding"):
        assert any(word in name for name in kept), word
    assert "logit_scale" in kept


def test_gradients_are_clipped_by_their_norm():
    """With momentum off, Adam's direction does not show a scale: compare moments."""
    params, tx = (
        {"a": jnp.zeros(4)},
        make_optimizer(OptimizerConfig(0.1, grad_clip_norm=1.0), 9),
    )
    _, state = tx.update({"a": jnp.full(4, 100.0)}, tx.init(params), params)
    first = [leaf for leaf in state[1][0].mu["a"]]
    np.testing.assert_allclose(np.linalg.norm(first), 0.1, rtol=1e-5)  # (1 - b1) * 1


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="'cosin'"):
        make_optimizer(OptimizerConfig(0.1, schedule="cosin"), 10)


def test_the_decay_of_warmup_stable_decay_is_the_end_of_the_run():
    options = OptimizerConfig(
        2.0, warmup_steps=4, schedule="warmup_stable_decay", decay_fraction=0.25
    )
    rate = learning_rate(options, 40)
    np.testing.assert_allclose([rate(i) for i in (0, 3, 4, 29, 30)], [0.5, 2, 2, 2, 2])
    np.testing.assert_allclose([rate(i) for i in (31, 35, 40)], [1.8, 1.0, 0.0], 1e-6)


def test_unknown_optimizers_are_refused():
    with pytest.raises(ValueError, match="'moun'"):
        OptimizerConfig(0.1, name="moun")
