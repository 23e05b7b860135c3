"""Scores of embeddings, against plain loops and cases with a known answer."""

import numpy as np
import pytest

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.metrics.embedding_metrics import embedding_metrics

RNG = np.random.default_rng(0)
N, D = 60, 8


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_against_plain_loops():
    true = RNG.standard_normal((N, D)) + 0.5
    predicted = true + RNG.standard_normal((N, D))
    redrawn = true + RNG.standard_normal((N, D))
    train = RNG.standard_normal((90, D))
    found = embedding_metrics(predicted, true, redrawn=redrawn, train=train)
    cosines = unit(predicted) @ unit(true).T
    off = ~np.eye(N, dtype=bool)
    again = unit(predicted) @ unit(redrawn).T
    limit = (unit(true) @ unit(train).T).max()
    nearest = (unit(predicted) @ unit(train).T).max(1)
    mean = unit(train.mean(0)[None])[0]
    own = np.diag(cosines)
    expected = {
        "to_true": own.mean(),
        "to_random": cosines[off].mean(),
        "mean_to_true": (unit(true) @ mean).mean(),
        "norm_ratio": np.linalg.norm(predicted, axis=1).mean()
        / np.linalg.norm(true, axis=1).mean(),
        "two_way": (own[:, None] > cosines)[off].mean(),
        "diversity": (1 - np.diag(again).mean()) / (1 - again[off].mean()),
        "overconfidence": np.diag(again).mean() - own.mean(),
        "nearest_training": nearest.mean(),
        "true_nearest_training": (unit(true) @ unit(train).T).max(1).mean(),
        "memorized": (nearest > limit).mean(),
    }
    for k in (1, 5):
        best = np.argsort(-cosines, 1)[:, :k]
        expected[f"predicted_to_true@{k}"] = np.mean(
            [i in row for i, row in enumerate(best)]
        )
        best = np.argsort(-cosines.T, 1)[:, :k]
        expected[f"true_to_predicted@{k}"] = np.mean(
            [i in row for i, row in enumerate(best)]
        )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)


def test_draws_of_the_targets_own_distribution_are_calibrated():
    """Of 2,000 conditions with Gaussian targets; a narrower draw is overconfident."""
    mean, *noise = np.random.default_rng(1).standard_normal((4, 2000, D))
    for spread, low, high in ((1.0, -0.01, 0.01), (0.3, 0.1, 1), (2.0, -1, -0.1)):
        true, one, two = (
            mean + noise[0],
            mean + spread * noise[1],
            mean + spread * noise[2],
        )
        score = embedding_metrics(one, true, redrawn=two)
        assert low < score["overconfidence"] < high


def test_known_answers():
    true = RNG.standard_normal((N, D))
    perfect = embedding_metrics(2 * true, true, redrawn=2 * true)
    assert perfect["to_true"] == pytest.approx(1)
    assert perfect["predicted_to_true@1"] == perfect["two_way"] == 1
    assert perfect["diversity"] == pytest.approx(0, abs=1e-9)
    assert perfect["norm_ratio"] == pytest.approx(2)
    # one answer for everything is at chance, and as good as the mean
    same = np.broadcast_to(true.mean(0), true.shape)
    constant = embedding_metrics(same, true)
    assert constant["predicted_to_true@1"] < 3 / N
    assert constant["true_to_predicted@1"] == pytest.approx(1 / N)
    assert constant["to_true"] == pytest.approx(constant["mean_to_true"])
    copied = embedding_metrics(true[::-1], true, train=true[::-1] * 3)
    assert copied["memorized"] == 0  # the held-out ones are in the training set
    copied = embedding_metrics(true, -true, train=true)
    assert copied["memorized"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"predicted": np.full((N, D), np.nan)}, "NaN"),
        ({"predicted": np.ones((N - 1, D))}, "paired"),
        ({"redrawn": np.ones((N, D + 1))}, "paired"),
        ({"train": np.ones((4, D + 1))}, "wide"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arrays = {"predicted": np.ones((N, D)), "true": np.ones((N, D)), **change}
    with pytest.raises(UsageError, match=message):
        embedding_metrics(arrays.pop("predicted"), arrays.pop("true"), **arrays)
