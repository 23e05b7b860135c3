"""The native export: what is written is read, and nothing else is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import TOWERS
from unclip_jax import models
from unclip_jax.interop import components, native
from unclip_jax.interop.export import export

SHARED = {"embed_dim": 8, "vocab_size": 20, "context_length": 5, "eot_id": 3}
CLIP = {"model": {**SHARED, **TOWERS}}
PRIOR = {
    "model": {**SHARED, "width": 8, "depth": 1, "num_heads": 2},
    "diffusion": {"schedule": "cosine", "num_steps": 10, "prediction": "x0"},
    "embedding": "standardize",
}


def random_params(kind, config, seed=0):
    shapes = components.param_shapes(kind, models.build(kind, config["model"]))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


@pytest.fixture
def clip():
    return random_params("clip", CLIP)


@pytest.fixture
def folder(tmp_path, clip):
    native.write_part(tmp_path / "out", "clip", CLIP, clip, {"step": 7})
    return tmp_path / "out"


def prior_meta(folder):
    return {"clip_fingerprint": native.read_part(folder, "clip")[2]["clip_fingerprint"]}


def test_round_trip_keeps_every_bit_and_shape(folder, clip):
    config, params, meta = native.read_part(folder, "clip")
    assert config == CLIP and meta["step"] == 7
    assert jax.tree.structure(params) == jax.tree.structure(clip)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(clip), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert params["logit_scale"].shape == ()


def test_non_contiguous_and_bfloat16_tensors(tmp_path):
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    half = jnp.ones((2,), jnp.bfloat16) * 1.5
    meta = {"clip_fingerprint": "x"}
    native.write_part(tmp_path, "prior", {}, {"a": {"t": wide.T}, "b": half}, meta)
    _, params, _ = native.read_part(tmp_path, "prior")
    np.testing.assert_array_equal(params["a"]["t"], wide.T)
    assert params["b"].dtype == np.float32  # as everything that is read
    np.testing.assert_array_equal(params["b"].astype(np.float32), [1.5, 1.5])


@pytest.mark.slow
def test_part_is_built_and_checked(folder):
    part = components.read_native(folder, "clip")
    images = np.full((2, 8, 8, 3), 9, np.uint8)
    out = part.module.apply({"params": part.params}, images, method="encode_image")
    assert out.shape == (2, 8)
    assert part.clip_fingerprint == part.meta["clip_fingerprint"]


def test_fingerprint_follows_params_and_config(clip):
    base = native.clip_fingerprint(CLIP, clip)
    assert base == native.clip_fingerprint(dict(CLIP), jax.tree.map(jnp.asarray, clip))
    nudged = {**clip, "logit_scale": clip["logit_scale"] + 1e-3}
    assert native.clip_fingerprint(CLIP, nudged) != base
    other = {"model": {**CLIP["model"], "activation": "quick_gelu"}}
    assert native.clip_fingerprint(other, clip) != base


def test_replacing_a_part_leaves_the_others_and_no_scraps(folder):
    params = random_params("prior", PRIOR)
    native.write_part(folder, "prior", PRIOR, params, prior_meta(folder))
    params["query"] = params["query"] + 1
    native.write_part(folder, "prior", PRIOR, params, prior_meta(folder))
    np.testing.assert_array_equal(
        native.read_part(folder, "prior")[1]["query"], params["query"]
    )
    assert native.read_part(folder, "clip")[0] == CLIP
    assert sorted(p.name for p in folder.iterdir()) == ["clip", "prior", "unclip.json"]


TABLE = {"timesteps": [0, 4, 9], "means": [0.1, 0.5 + 1e-12, 1.0], "examples": 7}


def test_a_part_keeps_its_table_of_analytic_variance(folder):
    params = random_params("prior", PRIOR)
    native.write_part(folder, "prior", PRIOR, params, prior_meta(folder))
    assert native.read_analytic(folder, "prior") is None
    assert components.read_native(folder, "prior").analytic is None
    for table in ({**TABLE, "examples": 3}, TABLE):  # the second replaces the first
        native.write_analytic(folder, "prior", table)
    assert native.read_analytic(folder, "prior") == TABLE
    part = components.read_native(folder, "prior")
    expected = np.interp(np.arange(10), TABLE["timesteps"], TABLE["means"])
    np.testing.assert_array_equal(part.analytic, expected)
    np.testing.assert_array_equal(part.params["query"], params["query"])
    assert sorted(p.name for p in folder.iterdir()) == ["clip", "prior", "unclip.json"]
    file = folder / "prior" / "analytic.json"
    file.write_text(file.read_text().replace("1.0", "0.9"))
    with pytest.raises(ValueError, match="analytic.json is not the file that was"):
        components.read_native(folder, "prior")
    # other weights, another table
    native.write_part(folder, "prior", PRIOR, params, prior_meta(folder))
    assert components.read_native(folder, "prior").analytic is None


def test_a_table_needs_its_part(folder):
    with pytest.raises(FileNotFoundError, match="has no decoder"):
        native.write_analytic(folder, "decoder", TABLE)


def test_a_failed_write_changes_nothing(folder, monkeypatch):
    def full_disk(*args):
        raise OSError("no space left on device")

    before = (folder / "unclip.json").read_bytes()
    monkeypatch.setattr(native, "write_tensors", full_disk)
    with pytest.raises(OSError, match="no space"):
        native.write_part(folder, "prior", PRIOR, {"a": np.ones(1)}, prior_meta(folder))
    assert (folder / "unclip.json").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["clip", "unclip.json"]


def test_parts_of_another_clip_are_refused(folder, clip):
    with pytest.raises(ValueError, match="different CLIPs: .*clip of.*prior of"):
        native.write_part(folder, "prior", PRIOR, {}, {"clip_fingerprint": "other"})
    with pytest.raises(ValueError, match="lacks 'clip_fingerprint'"):
        native.write_part(folder, "prior", PRIOR, {}, {})
    assert "prior" not in native.read_index(folder)["parts"]
    native.write_part(folder, "prior", PRIOR, {}, prior_meta(folder))
    other = {**clip, "logit_scale": clip["logit_scale"] + 1}
    with pytest.raises(ValueError, match="different CLIPs"):
        native.write_part(folder, "clip", CLIP, other, {})


def test_missing_part_names_the_command(folder):
    with pytest.raises(
        FileNotFoundError, match="has no decoder.*unclip_jax.export --run=.*DECODER"
    ):
        native.read_part(folder, "decoder")


def test_no_export_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="not an export"):
        native.read_part(tmp_path, "clip")


def edit_index(folder, **changes):
    file = folder / "unclip.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_wrong_version_and_format(folder):
    edit_index(folder, version=99)
    with pytest.raises(ValueError, match="version 99; this program reads"):
        native.read_part(folder, "clip")
    edit_index(folder, version=1, format="other")
    with pytest.raises(ValueError, match="format 'other'"):
        native.read_part(folder, "clip")
    (folder / "unclip.json").write_text("{")
    with pytest.raises(ValueError, match="unclip.json is not JSON"):
        native.read_part(folder, "clip")


def test_names_cannot_lead_outside(folder):
    edit_index(folder, parts={"../clip": {"files": {}}})
    with pytest.raises(ValueError, match="not a plain name"):
        native.read_index(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_changed_or_missing_file(folder, file):
    path = folder / "clip" / file
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{file} is not the file that was exported"):
        native.read_part(folder, "clip")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
        native.read_part(folder, "clip")


def test_wrong_tensors_are_listed(clip):
    wrong = {**clip, "extra": np.ones(2), "logit_scale": np.ones(3)}
    del wrong["visual_projection"]
    with pytest.raises(ValueError) as error:
        components.build_component("clip", CLIP, wrong, {}, where="the clip of X")
    message = str(error.value)
    assert "1 missing: visual_projection/kernel" in message
    assert "1 unexpected: extra" in message
    assert "1 of another shape: logit_scale (3,) instead of ()" in message
    assert message.startswith("the clip of X")


def run_meta(part, config, **data_info):
    return {
        "step": 3,
        "config": {"stage": part},
        "export": {"part": part, "config": config},
        "data_info": data_info,
    }


def test_export_of_runs(tmp_path, clip):
    run, out = tmp_path / "run", tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="tokenizer of"):
        export(clip, run_meta("clip", CLIP), run, out)
    assert not out.exists()
    (run / "tokenizer").mkdir(parents=True)
    (run / "tokenizer" / "vocab.json").write_text("{}")
    said = export(clip, run_meta("clip", CLIP), run, out)
    assert "exported the clip" in said and "clip, tokenizer" in said
    assert (out / "tokenizer" / "vocab.json").read_text() == "{}"

    prior = random_params("prior", PRIOR)
    fingerprint = native.clip_fingerprint(CLIP, clip)
    with pytest.raises(ValueError, match="different CLIPs"):
        export(prior, run_meta("prior", PRIOR, clip_fingerprint="no"), run, out)
    meta = run_meta("prior", PRIOR, clip_fingerprint=fingerprint)
    export(prior, meta, run, out)
    assert components.read_native(out, "prior").meta["step"] == 3
    with pytest.raises(ValueError, match="--format 'pickle'"):
        export(prior, meta, run, out, "pickle")
    del prior["query"]
    with pytest.raises(ValueError, match="1 missing: query"):
        export(prior, meta, run, out)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_statistics_are_of_embeddings_as_the_model_sees_them(tmp_path, clip, unit_norm):
    run, out = tmp_path / "run", tmp_path / "out"
    native.write_part(out, "clip", CLIP, clip, {})
    run.mkdir()
    raw, unit = np.ones(8), np.zeros(8)
    covs = {"cov": np.eye(8), "unit_cov": np.eye(8) / 8}
    np.savez(run / "statistics.npz", mean=raw, unit_mean=unit, **covs)
    config = {**PRIOR, "model": {**PRIOR["model"], "unit_norm": unit_norm}}
    prior = random_params("prior", config)
    export(prior, run_meta("prior", config, **prior_meta(out)), run, out)
    statistics = native.read_statistics(out)
    assert bool(statistics["unit"]) == unit_norm
    np.testing.assert_array_equal(statistics["mean"], unit if unit_norm else raw)
    # records of an older version have none of unit embeddings
    np.savez(run / "statistics.npz", mean=raw, cov=covs["cov"])
    export(prior, run_meta("prior", config, **prior_meta(out)), run, out)
    assert not native.read_statistics(out)["unit"]
