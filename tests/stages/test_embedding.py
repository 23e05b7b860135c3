"""The stages that predict any embedding: losses by hand, constants of the data."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.random_params import random_params
from unclip_jax import config as config_lib
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.errors import UsageError
from unclip_jax.stages.embedding_regression import contrastive_loss

RNG = np.random.default_rng(0)
MODEL = {"width": 16, "depth": 1, "num_heads": 2}
N = 8


def spec(shape=(6,), **values):
    return DataSpec(
        target="target",
        target_shape=shape,
        target_dtype="float32",
        embed_dim=shape[-1],
        embedding_mean=RNG.standard_normal(shape),
        embedding_std=RNG.random(shape) + 0.5,
        conditions={
            "voxels": {"kind": "vector", "shape": [5], "masked": True},
            "label": {"kind": "class", "shape": [], "dtype": "int32", "size": 4},
        },
        condition_statistics=lambda: {
            "voxels": {"mean": np.arange(5.0), "std": np.array([1, 2, 0, 1, 1.0])}
        },
        **values,
    )


def make(stage="embedding_prior", shape=(6,), info=None, model=MODEL, **options):
    config = stages.StageConfig(
        stage=stage, data={}, model=model, stage_options=options
    )
    made = stages.make_stage(config, info or spec(shape))
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    initial = jax.jit(made.init)(jax.random.key(0))
    params = random_params(shapes)
    params["space"] = initial["space"]
    return made, params, initial


def batch(shape=(6,)):
    return {
        "target": RNG.standard_normal((N, *shape)).astype(np.float32),
        "voxels": RNG.standard_normal((N, 5)).astype(np.float32),
        "voxels_mask": np.arange(N) % 3 > 0,
        "label": RNG.integers(-1, 4, N).astype(np.int32),
    }


def test_the_data_decide_the_constants():
    info = spec((3, 6))
    for name, expected in (
        ("standardize_tokens", (info.embedding_mean, info.embedding_std)),
        ("raw", (np.zeros((3, 6)), np.ones((3, 6)))),
        ("unit_scaled", (np.zeros((3, 6)), np.full((3, 6), 1 / (0.5375 * 6**0.5)))),
    ):
        _, _, params = make(info=info, embedding=name)
        np.testing.assert_allclose(params["space"]["mean"], expected[0], 1e-5)
        np.testing.assert_allclose(params["space"]["std"], expected[1], 1e-5)
    # over the tokens: the moments of a mixture of three distributions
    _, _, params = make(info=info)
    draws = RNG.standard_normal((200_000, 3, 6)) * info.embedding_std
    draws = (draws + info.embedding_mean).reshape(-1, 6)
    np.testing.assert_allclose(params["space"]["mean"][1], draws.mean(0), atol=0.02)
    np.testing.assert_allclose(params["space"]["std"][2], draws.std(0), rtol=0.02)
    own = params["condition_voxels"]["space"]
    np.testing.assert_allclose(own["mean"], np.arange(5.0))
    np.testing.assert_allclose(own["std"], [1, 2, 1, 1, 1])  # a constant is not scaled


@pytest.mark.parametrize("prediction", ["x0", "v", "epsilon", "flow"])
def test_the_loss_is_that_of_its_prediction(prediction):
    """Mean squared error of what Salimans & Ho, DDPM and rectified flow define."""
    shape = (3, 6)
    config = stages.StageConfig(
        stage="embedding_prior",
        data={},
        model=MODEL,
        diffusion={"prediction": prediction, "num_steps": 50},
        stage_options={"drop": 0.0},
    )
    stage = stages.make_stage(config, spec(shape))
    params = random_params(jax.eval_shape(stage.init, jax.random.key(0)))
    data, rng = batch(shape), jax.random.key(3)
    loss, metrics = jax.jit(stage.loss)(params, rng, data)
    rng_t, rng_noise, _, _ = jax.random.split(rng, 4)
    t = jax.random.randint(rng_t, (N,), 0, 50)
    noise = np.asarray(jax.random.normal(rng_noise, (N, *shape)))
    x_0 = (data["target"] - params["space"]["mean"]) / params["space"]["std"]
    bar = stage.diffusion.noise_schedule.alphas_cumprod[np.asarray(t)]
    signal, sigma = np.sqrt(bar)[:, None, None], np.sqrt(1 - bar)[:, None, None]
    x_t = signal * x_0 + sigma * noise
    conditions = {name: data[name] for name in ("voxels", "voxels_mask", "label")}
    output = stage.model.apply(
        {"params": params}, x_t.astype(np.float32), t, conditions, jnp.zeros(N, bool)
    )
    target = {
        "x0": x_0,
        "epsilon": noise,
        "v": signal * noise - sigma * x_0,
        "flow": noise - x_0,
    }[prediction]
    expected = np.square(target - np.asarray(output)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert set(metrics) == {"mse", "cosine", "cosine_to_a_random_one"}


def test_rows_lose_each_condition_by_its_own_rate():
    stage, _, _ = make(drop=0.1, drop_each={"voxels": 0.5})
    data = {name: np.repeat(a, 500, 0) for name, a in batch().items()}
    _, drop = jax.jit(stage.task.inputs)(data, jax.random.key(0))
    voxels, label = (np.asarray(drop[name]) for name in ("voxels", "label"))
    assert abs(label.mean() - 0.1) < 0.02 and (voxels | ~label).all()
    assert abs(voxels.mean() - (1 - 0.9 * 0.5)) < 0.03
    _, drop = stage.task.inputs(data)
    assert not np.asarray(drop).any()


def test_contrastive_loss_is_torchs_cross_entropy():
    a, b = RNG.standard_normal((2, N, 6)).astype(np.float32)
    one, two = (torch.nn.functional.normalize(torch.tensor(x), dim=1) for x in (a, b))
    logits, labels = one @ two.T / 0.1, torch.arange(N)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    np.testing.assert_allclose(contrastive_loss(a, b, 0.1), expected, rtol=1e-5)
    grad = jax.grad(lambda x: contrastive_loss(x, jnp.asarray(b), 0.1))(0 * a)
    assert np.isfinite(grad).all()  # a norm of 0 has no direction, and no NaN


def test_regression_adds_both_losses():
    stage, params, _ = make("embedding_regression", (3, 6), contrastive=0.5)
    loss, metrics = jax.jit(stage.loss)(params, jax.random.key(0), batch((3, 6)))
    expected = metrics["mse"] + 0.5 * metrics["contrastive"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embedding_prior", "embedding_regression"])
def test_gradient_steps_reduce_the_loss_in_bfloat16(name):
    config = stages.StageConfig(
        stage=name, data={}, model=MODEL, compute_dtype="bfloat16"
    )
    stage, data = stages.make_stage(config, spec((3, 6))), batch((3, 6))
    params, rng, values = stage.init(jax.random.key(0)), jax.random.key(1), []

    @jax.jit
    def step(params):
        loss = jax.value_and_grad(lambda p: stage.loss(p, rng, data), has_aux=True)
        (value, _), grads = loss(params)
        return jax.tree.map(lambda p, g: p - 0.03 * g, params, grads), value

    for _ in range(8):
        params, value = step(params)
        values.append(float(value))
    assert values[-1] < values[0] and value.dtype == jnp.float32
    embeddings = jax.jit(stage.embed)(params, rng, data)
    assert all(a.shape == (N, 18) for a in embeddings.values())


@pytest.mark.parametrize("name", ["embedding_prior", "embedding_regression"])
@pytest.mark.parametrize("embedding", ["standardize", "unit_scaled"])
def test_nothing_is_divided_by_a_small_norm(name, embedding):
    """A dimension that is constant, a target and a condition of zeros: all finite."""
    info = spec()
    info = dataclasses.replace(
        info, embedding_std=info.embedding_std * [1, 1, 0, 1, 1, 1]
    )
    stage, params, _ = make(name, info=info, embedding=embedding)
    data = batch()
    data["target"][0], data["voxels"][1], data["voxels"][:, 2] = 0, 0, 1e-4
    data["target"][:, 2] = np.float32(info.embedding_mean[2])
    value, grads = jax.jit(
        jax.value_and_grad(lambda p: stage.loss(p, jax.random.key(0), data)[0])
    )(params)
    assert float(value) < 1e4
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(grads))


def test_exports_rebuild_the_same_model():
    for name in ("embedding_prior", "embedding_regression"):
        stage, _, _ = make(name)
        plain = config_lib.to_plain(stage.export())
        assert plain["part"] == name
        model = models.build(name, plain["config"]["model"])
        assert model == stage.task.model
        plain = json.loads(json.dumps(plain, sort_keys=True))
        model = models.build(name, plain["config"]["model"])
        assert list(model.described) == ["voxels", "label"]  # as the data has them


def test_captions_of_clip_records_are_conditions():
    info = DataSpec(
        embed_dim=6,
        vocab_size=31,
        context_length=5,
        eot_id=30,
        embedding_mean=np.zeros(6),
        embedding_std=np.ones(6),
    )
    stage, _, _ = make(info=info)
    assert stage.batch_spec == {
        "clip_image": ((6,), "float32"),
        "tokens": ((5,), "int32"),
        "clip_text": ((6,), "float32"),
    }
    stage, _, _ = make(info=info, conditions=("clip_text",))
    assert "tokens" not in stage.batch_spec


@pytest.mark.parametrize(
    "values, message",
    [
        ({"conditions": ("voxel",)}, "did you mean 'voxels'"),
        ({"drop_each": {"labl": 0.1}}, "did you mean 'label'"),
        ({"drop": 1.5}, "expected 0 to 1"),
        ({"embedding": "standardise"}, "stage_options.embedding"),
        ({"model": {**MODEL, "target_shape": (3,)}}, "follows from the data"),
        ({"info": DataSpec(image_size=8)}, "unclip_jax.align"),
        ({"info": dataclasses.replace(spec(), embedding_mean=None)}, "no statistics"),
        ({"info": spec(absent_conditions=("label",))}, "no example.*condition 'label'"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        make(**values)
