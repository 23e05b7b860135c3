"""Prior: what it draws is DDIM's by hand, row by row, and bad input is named."""

import jax
import numpy as np
import pytest

from tests.random_params import random_params
from unclip_jax import Prior, stages
from unclip_jax import config as config_lib
from unclip_jax.data_spec import DataSpec
from unclip_jax.errors import UsageError
from unclip_jax.interop import native
from unclip_jax.interop.init_from import load_initial

SHAPE, ROWS, STEPS = (3, 6), 5, 20
CONDITIONS = {
    "voxels": {"kind": "vector", "shape": [5], "masked": True},
    "scans": {"kind": "repeats", "shape": [2, 4]},
    "label": {"kind": "class", "shape": [], "dtype": "int32", "size": 4},
}


def write(folder, stage="embedding_prior", conditions=CONDITIONS, diffusion=None):
    spec = DataSpec(
        target="target",
        target_shape=SHAPE,
        target_dtype="float32",
        embed_dim=6,
        embedding_mean=np.full(SHAPE, 2.0),
        embedding_std=np.full(SHAPE, 3.0),
        conditions=conditions,
        clip_fingerprint="an encoder",
    )
    config = stages.StageConfig(
        stage=stage,
        data={},
        model={"width": 16, "depth": 1, "num_heads": 2},
        diffusion=diffusion or {},
    )
    made = stages.make_stage(config, spec)
    params = random_params(jax.eval_shape(made.init, jax.random.key(0)))
    export, meta = made.export(), {"clip_fingerprint": spec.clip_fingerprint}
    native.write_part(folder, stage, export["config"], params, meta)
    return made, params


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusion")
    options = {"num_steps": STEPS, "sampler": "ddim", "sampling_steps": 4}
    return folder, *write(folder, diffusion=options), Prior.load(folder)


@pytest.fixture(scope="module")
def conditions():
    rng = np.random.default_rng(0)
    return {
        "voxels": rng.standard_normal((ROWS, 5)),
        "voxels_mask": np.array([1, 1, 0, 1, 1], bool),
        "scans": rng.standard_normal((ROWS, 2, 4)).astype(np.float16),
        "label": np.array([0, 3, 1, -1, 2]),
    }


def ddim_by_hand(stage, params, conditions, seed, scale, negative=None):
    """Song et al. 2021, equation 12, with eta 0, in float64 but for the model."""
    bar = stage.diffusion.noise_schedule.alphas_cumprod
    key = jax.random.key(seed)

    def noise(i):
        draw = jax.random.fold_in(jax.random.fold_in(key, i), 0)
        return jax.random.normal(jax.random.fold_in(draw, 0), SHAPE)

    x = np.stack([noise(i) for i in range(ROWS)]).astype("f8")
    timesteps = [19, 13, 6, 0]  # 4 of 20, evenly

    def predict(x, t, given, drop):
        arrays = {**given, "scans": np.float32(given["scans"]).mean(1)}
        inputs = x.astype("f4"), np.full(ROWS, t), arrays, np.full(ROWS, drop)
        return np.asarray(stage.model.apply({"params": params}, *inputs), "f8")

    for t, s in zip(timesteps, [*timesteps[1:], -1], strict=True):
        cond = predict(x, t, conditions, False)
        other = predict(x, t, negative or conditions, negative is None)
        x_0 = other + scale * (cond - other)
        epsilon = (x - np.sqrt(bar[t]) * x_0) / np.sqrt(1 - bar[t])
        bar_s = bar[s] if s >= 0 else 1.0
        x = np.sqrt(bar_s) * x_0 + np.sqrt(1 - bar_s) * epsilon
    return x * params["space"]["std"] + params["space"]["mean"]


@pytest.mark.slow
def test_draws_are_ddims(diffusion, conditions):
    _, stage, params, prior = diffusion
    assert prior.encoder == "an encoder" and prior.target_shape == SHAPE
    found = prior.sample(conditions, seed=7)
    assert found.dtype == np.float32
    given = conditions | {"voxels": conditions["voxels"].astype("f4")}
    expected = ddim_by_hand(stage, params, given, 7, 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    found = prior.sample(conditions, seed=7, guidance=3.0)
    expected = ddim_by_hand(stage, params, given, 7, 3.0)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    negative = {name: a[::-1].copy() for name, a in given.items()}
    found = prior.sample(conditions, seed=7, guidance=2.0, negative=negative)
    expected = ddim_by_hand(stage, params, given, 7, 2.0, negative)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_a_row_does_not_depend_on_the_others(diffusion, conditions):
    folder, _, _, prior = diffusion
    whole = prior.sample(conditions, n=3, seed=1)
    assert whole.shape == (ROWS, 3, *SHAPE)
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 1e-2
    few = Prior.load(folder, batch_size=2)
    part = {name: a[2:] for name, a in conditions.items()}
    np.testing.assert_allclose(
        few.sample(part, n=3, seed=1, first=2), whole[2:], atol=1e-4
    )
    np.testing.assert_allclose(prior.sample(conditions, seed=1), whole[:, 0], atol=1e-4)


def test_what_is_left_out_is_missing(diffusion, conditions):
    prior = diffusion[-1]
    masked = conditions | {"voxels_mask": np.zeros(ROWS, bool)}
    rest = {n: a for n, a in conditions.items() if not n.startswith("voxels")}
    np.testing.assert_allclose(prior.sample(rest), prior.sample(masked), atol=1e-5)
    mean = conditions["scans"].astype("f4").mean(1, keepdims=True)
    once = prior.sample(conditions | {"scans": mean})  # however many there are
    np.testing.assert_allclose(once, prior.sample(conditions), atol=1e-4)


@pytest.mark.slow
def test_it_starts_from_embeddings(diffusion, conditions):
    prior, start = diffusion[-1], np.full((ROWS, *SHAPE), 2.0, np.float32)
    near = prior.sample(conditions, start=start, strength=0.25)
    far = prior.sample(conditions, start=start + 1, strength=1.0)
    assert np.isfinite(near).all() and np.abs(near - far).max() > 1e-3


@pytest.mark.slow
def test_inversion_is_undone(diffusion, conditions):
    """What DDIM drew from some noise leads back to it, and that to it again: 1e-3."""
    prior = diffusion[-1]
    drawn = prior.sample(conditions, seed=3)
    options = {"steps": 10, "guidance": 2.0}
    noise = prior.invert(drawn, conditions, corrections=80, **options)
    assert noise.shape == drawn.shape
    again = prior.sample(conditions, noise=noise, **options)
    np.testing.assert_allclose(again, drawn, atol=1e-3)
    other = prior.sample(conditions, noise=np.zeros_like(noise), **options)
    assert np.abs(other - drawn).max() > 0.1
    way = prior.interpolate(
        drawn, drawn[::-1], conditions, num=3, corrections=80, **options
    )
    assert way.shape == (ROWS, 3, *SHAPE)
    np.testing.assert_allclose(way[:, 0], drawn, atol=1e-3)
    np.testing.assert_allclose(way[:, 2], drawn[::-1], atol=1e-3)
    assert np.abs(way[:, 1] - drawn).max() > 1e-2


@pytest.mark.slow
def test_an_edit_starts_from_embeddings(diffusion, conditions):
    prior, start = diffusion[-1], np.full((ROWS, *SHAPE), 2.0, np.float32)
    found = prior.edit(start, conditions, strength=0.25)
    expected = prior.sample(conditions, start=start, strength=0.25)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_one_pass(tmp_path, conditions):
    stage, params = write(tmp_path, "embedding_regression")
    prior = Prior.load(tmp_path)
    assert prior.is_deterministic
    given = {**conditions, "scans": conditions["scans"].astype("f4").mean(1)}
    given["voxels"] = given["voxels"].astype("f4")
    args = {"params": params}, None, None, given, np.zeros(ROWS, bool)
    expected = stage.task.model.apply(*args) * params["space"]["std"]
    expected = np.asarray(expected + params["space"]["mean"])
    np.testing.assert_allclose(prior.sample(conditions), expected, atol=1e-4)
    for options in ({"n": 2}, {"guidance": 2.0}, {"steps": 3}, {"start": expected}):
        with pytest.raises(UsageError, match="deterministic"):
            prior.sample(conditions, **options)


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"voxel": np.zeros((ROWS, 5))}, {}, "knows no 'voxel'"),
        ({"voxels": np.zeros((ROWS, 4))}, {}, r"expected \(rows, 5\)"),
        ({"label": np.zeros(ROWS - 1, int)}, {}, "as many of each|5 of each"),
        ({"label": np.full(ROWS, 4)}, {}, "numbers below 4"),
        ({"label": np.zeros(ROWS)}, {}, "whole numbers"),
        ({"scans": np.full((ROWS, 2, 4), np.nan)}, {}, "5 rows hold NaN"),
        ({"voxels_mask": np.ones((ROWS, 2), bool)}, {}, r"expected \(5,\)"),
        ({}, {"n": 0}, "whole number of draws"),
        ({}, {"sampler": "dim"}, "expected one of ddim"),
        ({}, {"steps": 50}, "from 1 to 20"),
        ({}, {"guidance": np.nan}, "finite"),
        ({}, {"strength": 0.5}, "give start"),
        ({}, {"start": np.zeros((ROWS, 6))}, "expected finite embeddings"),
        ({}, {"negative": {"label": np.zeros(ROWS, int)}}, "guidance other than 1"),
        ({}, {"negative": {"label": np.zeros(2, int)}, "guidance": 2.0}, "negative"),
    ],
)
def test_what_does_not_fit_is_refused(diffusion, conditions, change, options, message):
    with pytest.raises(UsageError, match=message):
        diffusion[-1].sample(conditions | change, **options)
    with pytest.raises(UsageError, match="no condition"):
        diffusion[-1].sample({})


def test_an_export_without_one_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not an export"):
        Prior.load(tmp_path)


def test_a_run_starts_from_an_export_of_the_same_conditions(diffusion, tmp_path):
    folder, stage, params, _ = diffusion

    def run(stage):
        return {"export": config_lib.to_plain(stage.export()), "data_info": {}}

    found = load_initial(folder, run(stage))
    assert jax.tree.structure(found) == jax.tree.structure(params)
    other = {name: CONDITIONS[name] for name in ("voxels", "label")}
    another, _ = write(tmp_path, conditions=other)
    with pytest.raises(UsageError, match="unexpected: condition_scans"):
        load_initial(folder, run(another))
