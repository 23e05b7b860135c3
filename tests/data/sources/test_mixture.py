"""Mixtures: their proportions, what each epoch shows, records mixed like pictures."""

import collections

import numpy as np
import pytest

from unclip_jax.data.loader import open_data
from unclip_jax.data.records import RecordReader
from unclip_jax.data.sources import make_source

ICONS = dict(source="icons", nouns=6, colours=4, backgrounds=4, image_size=16)


def mixture(**sources):
    made = {
        name: {**ICONS, "num_examples": n, "weight": w}
        for name, (n, w) in sources.items()
    }
    return make_source({"source": "mixture", "sources": made})


def names(data, n=None):
    return [data[i]["key"].split("/")[0] for i in range(n or len(data))]


def test_proportions_hold_everywhere():
    data = mixture(a=(30, 1.0), b=(7, 2.0), c=(90, 0.5))
    # c is the one that needs the longest: 90 of it are 1/7 of all
    assert data.counts == {"a": 180, "b": 360, "c": 90} and len(data) == 630
    found = names(data)
    assert collections.Counter(found) == data.counts
    for n in (7, 70, 350, 629):
        share = collections.Counter(found[:n])
        for name, count in data.counts.items():
            assert abs(share[name] - n * count / 630) <= 3


def test_each_source_is_gone_through_again_and_again():
    data = mixture(a=(30, 1.0), b=(7, 2.0))
    for name, size in (("a", 30), ("b", 7)):
        keys = [data[i]["key"] for i in range(len(data))]
        keys = [key for key in keys if key.startswith(name)]
        for start in range(0, len(keys) - size + 1, size):
            assert len(set(keys[start : start + size])) == size


def test_a_part_of_a_source_is_spread_over_it():
    sources = {n: {**ICONS, "num_examples": 1000, "weight": 1.0} for n in "ab"}
    data = make_source({"source": "mixture", "sources": sources, "num_examples": 100})
    numbers = [int(data[i]["key"][-8:]) for i in range(100) if names(data)[i] == "a"]
    assert len(numbers) == 50
    assert np.diff(np.sort(numbers)).max() <= 60  # even would be 20


def test_it_is_a_function_of_seed_and_index():
    sources = {n: {**ICONS, "num_examples": 50, "weight": 1.0} for n in "ab"}
    config = {"source": "mixture", "sources": sources}
    first, again = make_source(config), make_source(config)
    other = make_source({**config, "seed": 1})
    keys = [[data[i]["key"] for i in (70, 3, 20)] for data in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len(first.captions()) == 100


def test_records_mix_too(records, examples):
    sources = {
        name: {"source": "records", "path": str(records), "weight": weight}
        for name, weight in (("a", 1.0), ("b", 3.0))
    }
    config = {"source": "mixture", "sources": sources, "feed": "arrays"}
    data = open_data(config)
    assert len(data) == 200 and data.spec.clip_fingerprint == "a-clip"
    batch = data.take(200, ["clip_image", "image"])
    shown = collections.Counter(batch["clip_image"][:, 0].astype(int))
    assert set(shown) == set(range(50)) and set(shown.values()) == {4}
    i = int(batch["clip_image"][9, 0])
    np.testing.assert_array_equal(batch["image"][9], examples[i]["image"])
    statistics = RecordReader(records).statistics  # alike, so theirs are the mixture's
    np.testing.assert_allclose(data.spec.embedding_mean, statistics["mean"])
    np.testing.assert_allclose(data.spec.embedding_std, statistics["std"])


def test_statistics_of_a_mixture():
    from unclip_jax.data.sources.mixture import mix_statistics

    rng = np.random.default_rng(0)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    a, b = rng.normal(size=(300, 3)), 2 + rng.normal(size=(100, 3)) * (1, 2, 3)
    parts = [
        {
            "mean": x.mean(0),
            "cov": np.cov(x.T, ddof=0),
            "mean_norm": np.linalg.norm(x, axis=1).mean(),
            "unit_mean": unit(x).mean(0),
            "unit_cov": np.cov(unit(x).T, ddof=0),
        }
        for x in (a, b)
    ]
    mixed = mix_statistics([(0.75, parts[0]), (0.25, parts[1])])
    whole = np.concatenate([a, b])
    np.testing.assert_allclose(mixed["cov"], np.cov(whole.T, ddof=0), atol=1e-12)
    cov = np.cov(unit(whole).T, ddof=0)
    np.testing.assert_allclose(mixed["unit_cov"], cov, atol=1e-12)
    np.testing.assert_allclose(mixed["std"], whole.std(0), atol=1e-12)
    norm = np.linalg.norm(whole, axis=1).mean()
    np.testing.assert_allclose(mixed["mean_norm"], norm, atol=1e-12)


def test_mistakes_are_named(records):
    for sources in ({}, [], "icons", ["icons"]):
        with pytest.raises(ValueError, match="sources must be .*, at least one, got"):
            make_source({"source": "mixture", "sources": sources})
    with pytest.raises(ValueError, match="sources.a must be the options of a source"):
        make_source({"source": "mixture", "sources": {"a": "icons"}})
    with pytest.raises(ValueError, match="sources.a.weight must be above 0, got nan"):
        mixture(a=(5, float("nan")))
    with pytest.raises(ValueError, match="sources.a.weight must be above 0, got 0"):
        mixture(a=(5, 0))
    with pytest.raises(ValueError, match="sources.a.feed: set config.data.feed"):
        sources = {"a": {**ICONS, "feed": "tf"}}
        make_source({"source": "mixture", "sources": sources})
    with pytest.raises(ValueError, match="differ in image_size: .*'b': 8"):
        sources = {"a": ICONS, "b": {**ICONS, "image_size": 8}}
        make_source({"source": "mixture", "sources": sources})
