"""Statistics files: read back, foreign ones, caches that belong to their setting."""

import numpy as np
import pytest

from unclip_jax.evaluation.features import gaussian
from unclip_jax.evaluation.features.gaussian import GaussianStatistics
from unclip_jax.evaluation.metrics import frechet

ABOUT = {"convention": "clean", "layer": "2048", "weights_sha256": "ab", "n": 7}


def some(seed=0, about=None):
    x = np.random.default_rng(seed).normal(size=(9, 5))
    return GaussianStatistics(*frechet.statistics(x), ABOUT if about is None else about)


def test_written_statistics_are_read_back(tmp_path):
    gaussian.write(tmp_path / "deep" / "s.npz", some())
    got = gaussian.read(tmp_path / "deep" / "s.npz")
    np.testing.assert_array_equal(got.covariance, some().covariance)
    assert got.about == ABOUT and got.fingerprint == some().fingerprint
    assert got.fingerprint != some(1).fingerprint
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["s.npz"]


def test_files_of_other_programs(tmp_path):
    path = tmp_path / "openai.npz"
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(path, arr_0=images, mu=np.zeros(3, np.float32), sigma=np.eye(3))
    got = gaussian.read(path)
    assert got.mean.dtype == np.float64 and got.about == {}
    (note,) = gaussian.check_fits(got, {"convention": "clean"}, "openai.npz")
    assert "does not say its convention" in note


def test_other_conventions_are_refused():
    assert gaussian.check_fits(some(), {"layer": "2048"}, "f") == []
    with pytest.raises(ValueError, match="convention = 'clean'.*'pytorch-fid'"):
        gaussian.check_fits(some(), {"convention": "pytorch-fid"}, "f")


@pytest.mark.parametrize(
    "arrays,message",
    [
        (dict(mu=np.zeros(3)), "no `mu` and `sigma`"),
        (dict(mu=np.zeros(3), sigma=np.eye(4)), "should be"),
        (dict(mu=np.zeros(3), sigma=np.full((3, 3), np.nan)), "NaN"),
        (dict(mu=np.array([print]), sigma=np.eye(1)), "not a readable npz"),
    ],
)
def test_broken_files_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        gaussian.read(tmp_path / "s.npz")
    with pytest.raises(FileNotFoundError, match="none.npz"):
        gaussian.read(tmp_path / "none.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="not a readable npz"):
        gaussian.read(tmp_path / "cut.npz")


def test_caches_are_made_once_and_belong_to_their_setting(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return some().mean, some().covariance

    first = gaussian.cached(tmp_path, ABOUT, compute)
    again = gaussian.cached(tmp_path, dict(reversed(ABOUT.items())), compute)
    assert len(calls) == 1 and first.fingerprint == again.fingerprint
    gaussian.cached(tmp_path, {**ABOUT, "layer": "768"}, compute)
    assert len(calls) == 2
    for path in tmp_path.iterdir():  # a file under another's name
        gaussian.write(path, some(about={"layer": "64"}))
    with pytest.raises(ValueError, match="remove it"):
        gaussian.cached(tmp_path, ABOUT, compute)
