"""Decoders of latents: what they learn, and what stays as it was published."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.latent_configs import KANDINSKY, STABLE
from tests.random_params import random_params
from unclip_jax import stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.diffusion import process
from unclip_jax.stages import StageConfig, decoder

RNG = np.random.default_rng(0)
SPEC = DataSpec(
    image_size=16,
    latent_shape=(4, 4, 4),
    has_latent_std=True,
    embed_dim=6,
    vocab_size=31,
    context_length=5,
    eot_id=30,
    pad_id=0,
    embedding_mean=RNG.standard_normal(6),
    embedding_std=np.full(6, 2.0),
    empty_clip_image=RNG.standard_normal(6),
    text_width=10,
    empty_text_states=RNG.standard_normal((5, 10)),
)


def make_stage(config, spec=SPEC, **changes):
    merged = {
        name: {**values, **changes.get(name, {})} for name, values in config.items()
    }
    return stages.make_stage(StageConfig(stage="decoder", data={}, **merged), spec)


def make_batch(stage, rows=4):
    made = {}
    for name, (shape, dtype) in stage.batch_spec.items():
        if dtype == "int32":
            made[name] = RNG.integers(0, 30, (rows, *shape)).astype(dtype)
        else:
            made[name] = np.abs(RNG.standard_normal((rows, *shape))).astype(dtype)
    return made


def make_params(stage):
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    names = ("space", "null_clip_image", "empty_text_states")

    def of_data(key):  # nothing else of init is compiled
        params = stage.init(key)
        return {name: params[name] for name in names if name in params}

    return random_params(shapes) | jax.jit(of_data)(jax.random.key(0))


@pytest.fixture(scope="module", params=[KANDINSKY, STABLE], ids=["kandinsky", "stable"])
def made(request):
    stage = make_stage(request.param)
    return stage, make_params(stage), make_batch(stage)


def test_what_the_data_decides(made):
    stage, params, batch = made
    assert "image" not in batch and batch["latents"].dtype == np.float16
    if stage.diffusion.augmentation:
        assert stage.fields["pad_id"] == 0 and stage.fields["text_width"] == 10
        np.testing.assert_allclose(params["space"]["std"], 2.0)
        np.testing.assert_allclose(
            params["empty_text_states"], SPEC.empty_text_states, 1e-6
        )
    else:
        np.testing.assert_allclose(
            params["null_clip_image"], SPEC.empty_clip_image, 1e-6
        )
        assert (np.asarray(params["space"]["mean"]) == 0).all()


@pytest.mark.slow
def test_loss_is_that_of_latents_drawn_from_their_gaussians(made):
    """Against the same draws, by hand; both halves of them, within rounding."""
    stage, params, batch = made
    rng = jax.random.key(3)
    value, metrics = jax.jit(stage.loss)(params, rng, batch)

    def by_hand(params, batch):
        latents, level, noise = jax.random.split(jax.random.fold_in(rng, 1), 3)
        shape = batch["latents"].shape
        x_0 = batch["latents"] + batch["latent_std"] * jax.random.normal(latents, shape)
        z, extra = batch["clip_image"], None
        if stage.diffusion.augmentation:
            levels = jax.random.randint(level, (4,), 0, 50)
            f = jnp.cos((jnp.arange(51) / 50 + 0.008) / 1.008 * jnp.pi / 2) ** 2
            bar = jnp.cumprod(1 - jnp.minimum(1 - f[1:] / f[:-1], 0.999))[levels]
            mean, std = SPEC.embedding_mean, SPEC.embedding_std
            noised = jnp.sqrt(bar)[:, None] * (z - mean) / std
            noised += jnp.sqrt(1 - bar)[:, None] * jax.random.normal(noise, z.shape)
            z, extra = noised * std + mean, levels
        t_key, noise_key, clip_key, text_key, _ = jax.random.split(rng, 5)
        t = jax.random.randint(t_key, (4,), 0, 1000)
        epsilon = jax.random.normal(noise_key, shape)
        x_t = process.q_sample(stage.diffusion.noise_schedule, x_0, t, epsilon)
        drop_clip = jax.random.bernoulli(clip_key, 0.1, (4,))
        drop_text = jax.random.bernoulli(text_key, 0.5, (4,))
        inputs = z, batch["tokens"], drop_clip, drop_text, None
        output = stage.model.apply(
            {"params": params}, x_t, t, *inputs, batch.get("text_states"), extra
        )
        target = process.target(
            stage.diffusion.noise_schedule, stage.diffusion.prediction, x_0, t, epsilon
        )
        return jnp.mean(jnp.square(output[..., :4] - target))

    np.testing.assert_allclose(metrics["mse"], jax.jit(by_hand)(params, batch), 1e-4)
    assert np.isfinite(value) and value.dtype == jnp.float32


@pytest.mark.slow
def test_no_gradient_reaches_what_the_data_decides():
    stage = make_stage(KANDINSKY, stage_options={"drop_clip": 1.0})
    params, batch = make_params(stage), make_batch(stage)
    grads = jax.jit(jax.grad(lambda p: stage.loss(p, jax.random.key(0), batch)[0]))(
        params
    )
    for name in ("null_clip_image", "space"):
        assert not any(np.any(g) for g in jax.tree.leaves(grads[name]))
    assert np.any(grads["clip_to_time"]["kernel"])


@pytest.mark.slow
@pytest.mark.parametrize("trained", [True, False])
def test_the_variance_is_trained_or_left_alone(trained):
    stage = make_stage(KANDINSKY, diffusion={"train_variance": trained})
    params, batch = make_params(stage), make_batch(stage)
    grads, metrics = jax.jit(
        jax.grad(lambda p: stage.loss(p, jax.random.key(0), batch), has_aux=True)
    )(params)
    kernel = np.asarray(grads["unet"]["conv_out"]["kernel"])
    assert np.any(kernel[..., :4])
    assert np.any(kernel[..., 4:]) == trained == ("vb" in metrics)


@pytest.mark.slow
def test_previews_are_pairs_of_latents(made):
    stage, params, batch = made
    drawn = jax.jit(stage.preview)(params, jax.random.key(1), batch)
    assert drawn.shape == (8, 4, 4, 4) and drawn.dtype == jnp.float32
    np.testing.assert_array_equal(drawn[0::2], batch["latents"].astype(np.float32))


def test_holes_are_unions_of_rectangles():
    """Against their areas: a rectangle's is 1/9, of independent ones 1 - (8/9)^3."""
    keep = np.asarray(decoder.draw_keep(jax.random.key(0), 2000, 64))
    assert keep.shape == (2000, 64, 64, 1) and keep.dtype == np.float32
    assert set(np.unique(keep)) == {0.0, 1.0}
    hidden = 1 - keep.mean((1, 2, 3))
    assert abs((hidden == 1).mean() - decoder.ALL_HIDDEN) < 0.03
    points = 1 - keep[hidden < 1].mean((0, 3))
    # a point at (x, y) is in one with probability 4 x (1 - x) y (1 - y)
    x = (np.arange(64) + 0.5) / 64
    one = 2 * x * (1 - x)
    expected = 1 - (1 - one[:, None] * one) ** decoder.HOLES
    np.testing.assert_allclose(points, expected, atol=0.05)
    one_hole = decoder.draw_keep(jax.random.key(1), 3, 64)
    assert not np.array_equal(one_hole[0], one_hole[1])


@pytest.mark.slow
def test_a_decoder_that_inpaints_sees_what_is_kept():
    """The loss by hand, and a preview that knows all but the middle."""
    stage = make_stage(KANDINSKY, model={"extra": "inpaint"})
    params, batch = make_params(stage), make_batch(stage)
    assert params["unet"]["conv_in"]["kernel"].shape[2] == 9
    rng, inputs_seen = jax.random.key(3), []

    class Spy:
        def apply(self, variables, x_t, t, *inputs, **options):
            inputs_seen.append(inputs[-1])
            return stage.model.apply(variables, x_t, t, *inputs, **options)

        def __getattr__(self, name):
            return getattr(stage.model, name)

    spied = dataclasses.replace(stage, model=Spy())
    value, seen = jax.jit(lambda *args: (spied.loss(*args)[0], inputs_seen[-1]))(
        params, rng, batch
    )
    assert np.isfinite(value)
    noise = jax.random.normal(
        jax.random.split(jax.random.fold_in(rng, 1), 3)[0], batch["latents"].shape
    )
    x_0 = batch["latents"].astype(np.float32) + batch["latent_std"] * noise
    keep = decoder.draw_keep(jax.random.fold_in(rng, 2), 4, 4)
    np.testing.assert_allclose(seen[..., :4], x_0 * keep, atol=1e-5)
    np.testing.assert_array_equal(seen[..., 4:], keep)
    drawn = jax.jit(stage.preview)(params, jax.random.key(1), batch)
    assert drawn.shape == (8, 4, 4, 4)


@pytest.mark.slow
def test_a_decoder_of_hints_sees_them():
    """The loss is that of the same decoder on hints in [-1, 1], and trains on them."""
    stage = make_stage(KANDINSKY, model={"extra": "hint"})
    params, batch = make_params(stage), make_batch(stage)
    assert batch["hint"].shape == (4, 32, 32, 3)
    batch["hint"] = RNG.integers(0, 256, batch["hint"].shape).astype(np.uint8)
    seen = stage.inputs(batch, None, None)[-1]
    np.testing.assert_allclose(seen, batch["hint"] / 127.5 - 1, atol=1e-6)
    loss = jax.jit(lambda p, b: stage.loss(p, jax.random.key(3), b)[0])
    value = loss(params, batch)
    assert loss(params, {**batch, "hint": 255 - batch["hint"]}) != value
    gradient = jax.jit(jax.grad(loss))(params, batch)["hint"]
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
    drawn = jax.jit(stage.preview)(params, jax.random.key(1), batch)
    assert drawn.shape == (8, 4, 4, 4)


def test_exports_say_how_the_published_model_is_sampled():
    kandinsky = make_stage(KANDINSKY).export()["config"]["diffusion"]
    assert kandinsky["spacing"] == "leading" and kandinsky["to_x0"]
    stable = make_stage(STABLE).export()["config"]["diffusion"]
    assert not stable["to_x0"]
    assert stable["augmentation"] == {"schedule": "cosine", "num_steps": 50}


@pytest.mark.parametrize(
    ("config", "spec", "changes", "message"),
    [
        (KANDINSKY, {"latent_shape": None}, {}, "set config.autoencoder to the folder"),
        (KANDINSKY, {"latent_shape": (4, 8, 4)}, {}, "square latents of as many"),
        (KANDINSKY, {"latent_shape": (4, 4, 8)}, {}, "image_channels is 4"),
        (KANDINSKY, {"empty_clip_image": None}, {}, "embedding of an image of zeros"),
        (KANDINSKY, {"embed_dim": None}, {}, "needs 'embed_dim'"),
        (
            KANDINSKY,
            {},
            {"diffusion": {"augmentation": {"schedule": "cosine", "num_steps": 9}}},
            "no other takes it",
        ),
        (
            KANDINSKY,
            {},
            {"stage_options": {"null_embedding": "zero"}},
            "'zero': expected one of learned",
        ),
        (STABLE, {"text_width": None}, {}, "embed --config.text_states=True"),
        (STABLE, {}, {"diffusion": {"augmentation": {}}}, "needs it"),
        (
            STABLE,
            {},
            {"stage_options": {"embedding": "standardize"}},
            "as they are, 'raw'",
        ),
        (STABLE, {"pad_id": 7}, {"model": {"pad_id": 0}}, "pad_id is 0, but the data"),
    ],
)
def test_what_does_not_fit_is_refused(config, spec, changes, message):
    with pytest.raises(ValueError, match=message):
        make_stage(config, dataclasses.replace(SPEC, **spec), **changes)
