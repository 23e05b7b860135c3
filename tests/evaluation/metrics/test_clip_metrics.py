"""CLIP score, R-precision, retrieval, zero-shot and prior metrics, by brute force."""

import numpy as np
import pytest

from unclip_jax.evaluation.metrics.clip_score import clip_score
from unclip_jax.evaluation.metrics.prior_metrics import prior_metrics
from unclip_jax.evaluation.metrics.r_precision import r_precision
from unclip_jax.evaluation.metrics.ranking import hit_rate_at, mean_rank
from unclip_jax.evaluation.metrics.retrieval import retrieval
from unclip_jax.evaluation.metrics.zero_shot import zero_shot_accuracy


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def cos(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_clip_score_conventions():
    image, text = normal(0, 30, 6), normal(1, 30, 6)
    cosines = np.array([cos(a, b) for a, b in zip(image, text, strict=True)])
    assert (cosines < 0).any()  # else hessel and cosine could not differ
    assert clip_score(image, text, "cosine") == pytest.approx(cosines.mean())
    hessel = np.mean([2.5 * max(c, 0) for c in cosines])
    assert clip_score(image, text, "hessel") == pytest.approx(hessel)
    assert clip_score(image, text, "torchmetrics") == pytest.approx(
        max(100 * cosines.mean(), 0)
    )
    assert clip_score(image, -image, "torchmetrics") == 0.0
    assert clip_score(image, image * 3, "torchmetrics") == pytest.approx(100.0)


def test_clip_score_refuses():
    with pytest.raises(ValueError, match="hessel"):
        clip_score(normal(0, 3, 4), normal(0, 3, 4), "fid")
    with pytest.raises(ValueError, match="paired"):
        clip_score(normal(0, 3, 4), normal(0, 4, 4))


def test_ties_count_in_expectation():
    scores = np.array([[1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 2.0, 0.0]])
    np.testing.assert_allclose(hit_rate_at(np.array([1.0, 2.0]), scores, 1), [0.25, 0])
    np.testing.assert_allclose(hit_rate_at(np.array([1.0, 2.0]), scores, 2), [0.5, 0.5])
    np.testing.assert_allclose(hit_rate_at(np.array([1.0, 2.0]), scores, 3), [0.75, 1])
    np.testing.assert_allclose(mean_rank(np.array([1.0, 2.0]), scores), [2.5, 2.5])


def test_r_precision_perfect_constant_and_noisy():
    text = normal(2, 60, 16)
    assert r_precision(text, text, pool=20) == 1.0
    same = np.ones_like(text)
    assert r_precision(same, text, pool=10) < 0.35
    assert r_precision(text, same, pool=10) == pytest.approx(0.1)
    image = text + 2.0 * normal(3, 60, 16)
    # The whole pool: the draw cannot matter, so brute force must agree exactly.
    want = np.mean(
        [np.argmax([cos(image[i], text[j]) for j in range(60)]) == i for i in range(60)]
    )
    assert 0.1 < want < 0.9
    assert r_precision(image, text, pool=60) == pytest.approx(want)
    assert r_precision(image, text, pool=60, k=5) > want
    assert r_precision(image, text, pool=5) > want


def test_r_precision_never_draws_the_same_words():
    text = np.repeat(normal(4, 5, 8), 2, axis=0)
    captions = [f"caption {i // 2}" for i in range(10)]
    assert r_precision(text, text, pool=9, groups=captions) == 1.0
    assert r_precision(text, text, pool=10) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="set pool to at most 9"):
        r_precision(text, text, pool=10, groups=captions)


def test_retrieval_by_brute_force():
    text = normal(5, 40, 12)
    image = text + 1.5 * normal(6, 40, 12)
    got = retrieval(image, text, ks=(1, 5))
    table = np.array([[cos(a, b) for b in text] for a in image])
    for k in (1, 5):
        by_image = [i in np.argsort(-table[i])[:k] for i in range(40)]
        by_text = [i in np.argsort(-table[:, i])[:k] for i in range(40)]
        assert got[f"image_to_text@{k}"] == pytest.approx(np.mean(by_image))
        assert got[f"text_to_image@{k}"] == pytest.approx(np.mean(by_text))
    assert got["image_to_text@1"] < got["image_to_text@5"] < 1.0


def test_zero_shot_by_brute_force():
    text = normal(7, 6, 3, 10)
    labels = np.random.default_rng(8).integers(6, size=50)
    image = text[labels, 0] + 1.5 * normal(9, 50, 10)
    units = text / np.linalg.norm(text, axis=-1, keepdims=True)
    classes = [sum(units[c]) for c in range(6)]
    order = [np.argsort([-cos(x, c) for c in classes]) for x in image]
    for k in (1, 3):
        want = np.mean([lab in o[:k] for lab, o in zip(labels, order, strict=True)])
        assert zero_shot_accuracy(image, text, labels, k) == pytest.approx(want)
    with pytest.raises(ValueError, match="6 classes"):
        zero_shot_accuracy(image, text, labels + 1)


def test_prior_metrics_by_brute_force():
    true, text = normal(10, 25, 8) + 1, normal(11, 25, 8)
    predicted = 2 * (true + normal(12, 25, 8))
    got = prior_metrics(predicted, true, text)
    table = np.array([[cos(p, t) for t in true] for p in predicted])
    off = table[~np.eye(25, dtype=bool)]
    assert got["to_true"] == pytest.approx(np.diag(table).mean())
    assert got["to_random"] == pytest.approx(off.mean())
    ranks = [np.sum(row > row[i]) for i, row in enumerate(table)]
    assert got["rank"] == pytest.approx(np.mean(ranks) / 24)
    assert got["top1"] == pytest.approx(np.mean(np.array(ranks) == 0))
    want = np.mean([cos(a, b) for a, b in zip(predicted, text, strict=True)])
    assert got["to_text"] == pytest.approx(want)
    dots = [a @ b for a, b in zip(predicted, text, strict=True)]
    assert got["dot"] == pytest.approx(np.mean(dots))
    perfect = prior_metrics(true, true, text)
    assert perfect["to_true"] == pytest.approx(1) and perfect["rank"] == 0
    assert perfect["norm_ratio"] == pytest.approx(1)
    collapsed = prior_metrics(np.ones_like(true), true, text)
    assert collapsed["top1"] < 0.2
