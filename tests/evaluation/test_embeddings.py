"""Files of embeddings: whole, resumed, scored; what does not belong is refused."""

import dataclasses
import json

import numpy as np
import pytest

from tests.generation.test_embedding_prior import write as write_prior
from unclip_jax.data.aligned import alignment, writer
from unclip_jax.data.aligned.config import read_config
from unclip_jax.errors import UsageError
from unclip_jax.evaluation import embeddings
from unclip_jax.evaluation.metrics.embedding_metrics import embedding_metrics
from unclip_jax.generation import Prior
from unclip_jax.generation.options import EmbeddingOptions

N = 40
QUIET = {"say": lambda line: None}


def align(folder, width=5, encoder="an encoder", **more):
    rng = np.random.default_rng(0)
    arrays = {
        "target": rng.standard_normal((N, 3, 6)),
        "voxels": rng.standard_normal((N, width)),
        "scans": rng.standard_normal((N, 2, 4)),
        "label": rng.integers(0, 4, N),
        **more,
    }
    paths = {}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        paths[name] = {"path": str(folder / f"{name}.npy")}
    paths["scans"]["repeats"] = True
    config = {"target": paths.pop("target"), "conditions": paths}
    config = read_config(config | {"splits": {"all": 1.0}, "encoder": encoder})
    writer.write(config, alignment.align(config), folder / "records", **QUIET)
    return str(folder / "records" / "all")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    write_prior(folder, diffusion={"num_steps": 8})
    return embeddings.SampleConfig(
        prior=str(folder),
        data=align(tmp_path_factory.mktemp("data")),
        batch_size=2,
        n=2,
        options=EmbeddingOptions(steps=2),
    )


@pytest.mark.slow
def test_an_interrupted_command_goes_on(config, tmp_path, monkeypatch):
    whole = embeddings.sample(config, tmp_path / "whole", **QUIET)
    assert whole.shape == (N, 2, 3, 6) and np.isfinite(whole).all()
    assert len({row.tobytes() for row in np.asarray(whole)}) == N
    drawn, original = [], Prior.sample

    def interrupted(self, *args, first, **options):
        if first >= 16 and len(drawn) == 2:
            drawn.append("stop")
            raise KeyboardInterrupt
        drawn.append(first)
        return original(self, *args, first=first, **options)

    monkeypatch.setattr(Prior, "sample", interrupted)
    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        embeddings.sample(config, out, **QUIET)
    assert not (out / embeddings.SAMPLES).exists()
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(FileExistsError, match="seed was 0, now 1"):
        embeddings.sample(other, out, **QUIET)
    parts = embeddings.sample(config, out, **QUIET)
    assert drawn[:4] == [0, 8, "stop", 16]  # nothing twice
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    again = []
    embeddings.sample(config, out, say=again.append)
    assert "finished already" in again[0]
    with pytest.raises(FileExistsError, match="seed"):
        embeddings.sample(other, out, **QUIET)
    scores = embeddings.score(config, out, train=config.data, **QUIET)
    assert json.loads((out / embeddings.SCORES).read_text()) == scores
    assert {"diversity", "memorized"} <= scores.keys() and scores["chance@5"] == 5 / N


def test_other_data_is_refused(config, tmp_path):
    for change, message in (
        ({"width": 4}, r"voxels has shape \(16, 4\)"),
        ({"encoder": "another"}, "embeddings of 'another'"),
        ({"target": np.ones((N, 6))}, r"shape \(6,\), the prior makes \(3, 6\)"),
    ):
        folder = tmp_path / message[:5]
        folder.mkdir()
        other = dataclasses.replace(config, n=0, data=align(folder, **change))
        with pytest.raises(UsageError, match=message):
            embeddings.sample(other, folder / "out", **QUIET)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        embeddings.sample(config, tmp_path / "full", **QUIET)
    with pytest.raises(UsageError, match="--count"):
        dataclasses.replace(config, count=-1)


@pytest.mark.slow
def test_scores_of_each_class(config, tmp_path):
    """Those of a class are those of its rows alone; another name is refused."""
    embeddings.sample(config, tmp_path, **QUIET)
    lines = []
    scores = embeddings.score(config, tmp_path, groups="label", say=lines.append)
    labels = np.load(f"{config.data}/label.npy")
    assert set(scores["groups"]) == {"0", "1", "2", "3"}
    assert f"label 2: {(labels == 2).sum()} rows" in lines
    true = np.load(f"{config.data}/target.npy").reshape(N, -1)[labels == 2]
    drawn = np.load(tmp_path / "samples.npy").reshape(N, 2, -1)[labels == 2]
    own = embedding_metrics(drawn[:, 0], true, redrawn=drawn[:, 1])
    assert scores["groups"]["2"] == own | {
        "chance@1": 1 / len(true),
        "chance@5": 5 / len(true),
    }
    with pytest.raises(UsageError, match="--groups=voxels.* no such class; it has lab"):
        embeddings.score(config, tmp_path, groups="voxels", **QUIET)
