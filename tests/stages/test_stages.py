"""Every stage of configs/icons, shrunk, on random data."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from tests.configs import load_complete
from tests.random_params import random_params
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.stages.diffusion import DiffusionConfig
from unclip_jax.training.run_config import read_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "icons"
RNG = np.random.default_rng(0)
INFO = {
    "image_size": 16,
    "embed_dim": 12,
    "vocab_size": 31,
    "context_length": 8,
    "eot_id": 30,
    "embedding_mean": RNG.standard_normal(12),
    "embedding_std": np.full(12, 2.0),
    "embedding_sample": lambda: {
        name: np.random.default_rng(1).standard_normal((64, 12), np.float32)
        for name in ("clip_image", "clip_text")
    },
    "text_width": 10,
    "empty_text_states": RNG.standard_normal((8, 10)),
    "empty_clip_text": RNG.standard_normal(12),
}
TINY = {
    "clip": {"embed_dim": 12, "patch_size": 8, "vision_width": 16, "vision_depth": 1},
    "prior": {"width": 16, "depth": 1},
    "ar_prior": {"width": 16, "depth": 1, "num_components": 9, "num_buckets": 8},
    "decoder": {"channels": 16, "head_channels": 8, "norm_groups": 4},
}
TEXT = {"text_width": 16, "text_depth": 1}
KARLO = {"caption": "clip_states"}
FORMS = [(name, {}) for name in sorted(TINY)] + [("decoder", KARLO), ("prior", KARLO)]


def make_config(name, **changes):
    config = load_complete(CONFIGS / f"{name}.py")
    config.model.update({**TINY[name], **({} if name == "prior" else TEXT), **changes})
    return config


def make_stage(config, info=INFO):
    return stages.make_stage(read_config(config), DataSpec(**info))


def batch(stage, n=8):
    made = {}
    for name, (shape, dtype) in stage.batch_spec.items():
        if dtype.startswith("float"):
            made[name] = RNG.standard_normal((n, *shape)).astype(dtype)
        else:
            high = 256 if dtype == "uint8" else INFO["vocab_size"]
            made[name] = RNG.integers(0, high, (n, *shape)).astype(dtype)
    return made


def constants(stage):
    """What the stage's own init says of the data; nothing else of it is compiled."""

    def of_data(key):
        params = stage.init(key)
        return {name: params[name] for name in stages.CONSTANTS if name in params}

    return jax.jit(of_data)(jax.random.key(0))


def make_params(stage):
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    return {**random_params(shapes), **constants(stage)}


@pytest.fixture(
    scope="module",
    params=FORMS,
    ids=[" ".join([name, *changes.values()]) for name, changes in FORMS],
)
def made(request):
    name, changes = request.param
    stage = make_stage(make_config(name, **changes), INFO)
    return name, stage, make_params(stage), batch(stage)


def test_there_is_a_config_for_every_stage():
    assert set(TINY) <= set(stages.names())
    folders = (CONFIGS, CONFIGS.parent / "any", CONFIGS.parent / "icons_latent")
    names = {path.stem for folder in folders for path in folder.glob("*.py")}
    assert set(stages.names()) <= names


@pytest.mark.slow
def test_gradient_steps_reduce_the_loss(made):
    _, stage, params, data = made
    rng = jax.random.key(1)  # the same noise each time: a fixed objective

    @jax.jit
    def step(params):
        def loss(p):
            return stage.loss(p, rng, data)

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.03 * g, params, grads), value, metrics

    values = []
    for _ in range(8):
        params, value, metrics = step(params)
        values.append(float(value))
    assert values[-1] < values[0] and value.dtype == jnp.float32
    assert all(np.isfinite(v) and np.shape(v) == () for v in metrics.values())


def test_the_embedding_convention_travels_with_the_parameters(made):
    name, stage, params, _ = made
    if name == "clip":
        assert "space" not in params
        return
    np.testing.assert_allclose(params["space"]["mean"], INFO["embedding_mean"], 1e-6)
    np.testing.assert_allclose(params["space"]["std"], INFO["embedding_std"], 1e-6)
    assert stage.export()["config"]["embedding"] == "standardize"


def test_exports_rebuild_the_same_model(made):
    from unclip_jax import config as config_lib

    name, stage, _, _ = made
    plain = config_lib.to_plain(stage.export())
    assert plain["part"] == name
    assert models.build(name, plain["config"]["model"]) == stage.model


@pytest.mark.slow
def test_decoder_previews_pair_true_and_drawn_pictures():
    stage = make_stage(make_config("decoder"), INFO)
    params, data = make_params(stage), batch(stage, 2)
    drawn = jax.jit(stage.preview)(params, jax.random.key(1), data)
    assert drawn.shape == (4, 16, 16, 3) and drawn.dtype == jnp.uint8
    np.testing.assert_array_equal(drawn[0::2], data["image"])


@pytest.mark.slow
def test_bfloat16_compute_keeps_float32_losses():
    config = make_config("decoder", learned_sigma=True)
    config.compute_dtype = "bfloat16"
    config.diffusion.prediction = "epsilon"
    stage = make_stage(config, INFO)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(shapes))
    params = make_params(stage)
    loss, metrics = jax.jit(stage.loss)(params, jax.random.key(1), batch(stage))
    assert loss.dtype == jnp.float32 and np.isfinite(loss)
    assert set(metrics) == {"mse", "vb"}


@pytest.mark.parametrize("convention", ["unit_scaled", "unit_17.2"])
@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_the_papers_convention_is_unit_norm_times_a_scale(name, convention):
    """0.5375 sqrt(D), which is 17.2 in the paper; runs of "unit_17.2" keep 17.2."""
    config = make_config(name)
    config.stage_options.embedding = convention
    stage = make_stage(config, INFO)
    params = constants(stage)
    assert stage.model.unit_norm
    scale = 17.2 if convention == "unit_17.2" else 0.5375 * 12**0.5
    np.testing.assert_array_equal(params["space"]["std"], np.float32(1 / scale))


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_models_on_clips_states_know_the_empty_caption(name):
    stage = make_stage(make_config(name, **KARLO), INFO)
    params = constants(stage)
    assert stage.batch_spec["text_states"] == ((8, 10), "float16")
    for key in ("empty_text_states", "empty_clip_text"):
        np.testing.assert_allclose(params[key], INFO[key], 1e-6)
        assert key in stages.CONSTANTS  # weight decay leaves them alone
    with pytest.raises(ValueError, match="embed --config.text_states=True"):
        make_stage(make_config(name, **KARLO), {**INFO, "text_width": None})


def test_raw_embeddings_are_left_as_they_are():
    config = make_config("decoder", **KARLO)
    config.stage_options.embedding = "raw"
    stage = make_stage(config, INFO)
    space = constants(stage)["space"]
    assert (space["mean"] == 0).all() and (space["std"] == 1).all()
    assert stage.export()["config"]["embedding"] == "raw"


def test_rematerialisation_and_scanning_are_recorded():
    """What a checkpoint says of the model rebuilds it with the same fields."""
    given = {
        "clip": {"remat": "dots", "scan_layers": True},
        "prior": {"remat": "full", "scan_layers": True},
        "decoder": {"remat": True, "scan_layers": True},
    }
    for name, fields in given.items():
        stage = make_stage(make_config(name, **fields), INFO)
        model = models.build(name, stage.export()["config"]["model"])
        assert {key: getattr(model, key) for key in fields} == fields


def test_an_embedding_width_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="embed_dim is 768, but the data has 12"):
        make_stage(make_config("prior", embed_dim=768), INFO)


def test_data_without_embeddings_is_refused():
    with pytest.raises(ValueError, match="unclip_jax.embed"):
        make_stage(make_config("prior"), {**INFO, "embed_dim": None})


def test_mistyped_options_are_refused_with_the_nearest():
    config = make_config("prior")
    with config.unlocked():
        config.stage_options.drop_txt = 0.1
    with pytest.raises(ValueError, match="'drop_txt'.*did you mean 'drop_text'"):
        make_stage(config, INFO)
    config = make_config("clip")
    config.stage = "clop"
    with pytest.raises(ValueError, match="'clop': expected one of"):
        make_stage(config, INFO)


@pytest.mark.parametrize(
    "name, said",
    [
        ("prior", dict(sampler="ddpm", sampling_steps=64, variance="analytic")),
        ("decoder", dict(sampler="ddpm", sampling_steps=250, guidance=1.25)),
        ("decoder", dict(sampler="dpmpp_2m", sampling_steps=20)),
    ],
)
def test_exports_carry_how_to_sample(name, said):
    config = make_config(name)
    config.diffusion.update(said)
    diffusion = make_stage(config, INFO).export()["config"]["diffusion"]
    assert {key: diffusion[key] for key in said} == said


@pytest.mark.parametrize(
    "name, said, message",
    [
        ("prior", dict(sampler="euler"), "sampler 'euler': expected one of ddim"),
        ("prior", dict(variance="big"), "variance 'big': expected one of fixed_small"),
        ("prior", dict(variance="fixed_small"), "an option of sampler='ddpm'"),
        ("prior", dict(sampling_steps=2000), "sampling_steps: .* 1000, got 2000"),
        (
            "prior",
            dict(sampling_steps=2.5),
            "sampling_steps must be of type int or str, got 2.5",
        ),
        (
            "prior",
            dict(sampling_steps=True),
            "sampling_steps must be of type int or str, got True",
        ),
        ("decoder", dict(guidance=float("nan")), "guidance must be a finite number"),
        (
            "decoder",
            dict(sampler="ddpm", variance="learned_range"),
            "does not predict its variance",
        ),
    ],
)
def test_impossible_ways_to_sample_are_refused(name, said, message):
    config = make_config(name)
    with config.ignore_type():
        config.diffusion.update(said)
    with pytest.raises(ValueError, match=f"config.diffusion.{message}|{message}"):
        make_stage(config, INFO)


def test_timesteps_are_drawn_as_asked_for():
    uniform = DiffusionConfig()
    t = np.asarray(uniform.draw_timesteps(jax.random.key(0), 20_000))
    assert t.min() == 0 and t.max() == 999 and abs(t.mean() - 499.5) < 8
    t = DiffusionConfig(logit_normal=(0.8, 0.7)).draw_timesteps(
        jax.random.key(0), 20_000
    )
    cdf = scipy.stats.norm(0.8, 0.7).cdf
    for bound in (200, 500, 700, 900):
        below = np.mean(np.asarray(t) < bound)
        assert abs(below - cdf(scipy.special.logit(bound / 1000))) < 0.015
    assert DiffusionConfig(logit_normal=(20, 1.0)).draw_timesteps(
        jax.random.key(0), 9
    ).tolist() == 9 * [999]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"prediction": "x_0"}, "prediction 'x_0': expected one of epsilon, x0, v, fl"),
        ({"loss_space": "w"}, "loss_space 'w': expected one of epsilon"),
        ({"logit_normal": (0.0, 0.0)}, r"logit_normal \(0.0, 0.0\): expected"),
        ({"logit_normal": (0.0,)}, r"logit_normal \(0.0,\): expected \(mean, std\)"),
    ],
)
def test_impossible_options_of_the_process_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**options)
