import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.training.optimizer import Options, learning_rate, make_optimizer


def test_the_learning_rate_warms_up_and_decays():
    rate = learning_rate(Options(1.0, warmup_steps=4, schedule="cosine"), 20)
    np.testing.assert_allclose([rate(i) for i in range(4)], [0.25, 0.5, 0.75, 1.0])
    assert rate(4) == 1.0 and abs(rate(12) - 0.5) < 1e-6 and rate(20) < 1e-6


def test_constant_after_the_warm_up_by_default():
    rate = learning_rate(Options(0.5, warmup_steps=2), 20)
    assert [float(rate(i)) for i in (0, 1, 2, 19)] == [0.25, 0.5, 0.5, 0.5]


def test_weight_decay_is_for_matrices_only():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = make_optimizer(Options(0.1, weight_decay=0.5), 10)
    zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05)
    np.testing.assert_allclose(updates["bias"], 0)


def test_constants_do_not_decay():
    """A codebook's edges and components are matrices, and facts about the data."""
    tx = make_optimizer(Options(0.1, weight_decay=0.5), 10)
    params = {"codebook": {"edges": jnp.ones((2, 2))}, "text": {"edges": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates["codebook"]["edges"], 0)


def test_gradients_are_clipped_by_their_norm():
    """With momentum off, Adam's direction does not show a scale: compare moments."""
    params, tx = (
        {"a": jnp.zeros(4)},
        make_optimizer(Options(0.1, grad_clip_norm=1.0), 9),
    )
    _, state = tx.update({"a": jnp.full(4, 100.0)}, tx.init(params), params)
    first = [leaf for leaf in state[1][0].mu["a"]]
    np.testing.assert_allclose(np.linalg.norm(first), 0.1, rtol=1e-5)  # (1 - b1) * 1


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="'cosin'"):
        make_optimizer(Options(0.1, schedule="cosin"), 10)
