"""Latents of pictures and what is done with them, on tiny random models."""

import dataclasses

import numpy as np
import pytest

from tests.generation.conftest import make_model
from unclip_jax.generation import UnCLIP

STEPS = 100


def psnr(a, b):
    error = np.square(a.astype(float) - b).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def close(a, b, most=1):
    difference = np.abs(a.astype(int) - b.astype(int))
    assert difference.max() <= most, difference.max()


@pytest.fixture(scope="module")
def smooth(stack):
    """Many steps, a parameterisation tame at both ends, embeddings that weigh more."""
    decoder = stack.parts["decoder"]
    diffusion = {"schedule": "cosine", "num_steps": STEPS, "prediction": "v"}
    config = {**decoder.config, "diffusion": diffusion}
    heavy = {"kernel": 12 * decoder.params["clip_to_time"]["kernel"]}
    params = {**decoder.params, "clip_to_time": {**decoder.params["clip_to_time"]}}
    params["clip_to_time"] |= heavy
    decoder = dataclasses.replace(decoder, config=config, params=params)
    return dataclasses.replace(stack, parts={**stack.parts, "decoder": decoder})


@pytest.fixture(scope="module")
def model(smooth):
    return make_model(smooth)


@pytest.fixture(scope="module")
def latents(model, images):
    return model.invert(images, steps=STEPS)


@pytest.mark.slow
def test_inversion_then_ddim_gives_the_picture_back(model, images, latents):
    """Measured: 37.7 dB."""
    z, x_T = latents
    assert z.shape == (5, 8) and x_T.shape == (5, 8, 8, 3) and x_T.dtype == np.float32
    options = dict(guidance=1.0, steps=STEPS)
    back = model.decode(z, noise=x_T, inverted=True, **options)
    afresh = model.decode(z, guidance=1.0, steps=STEPS)
    assert psnr(back, images) > 35, psnr(back, images)
    assert psnr(afresh, images) < 20
    np.testing.assert_array_equal(model.reconstruct(images, steps=STEPS), back)


@pytest.mark.slow
def test_more_steps_come_closer(model, images):
    few = psnr(model.reconstruct(images, steps=4), images)
    many = psnr(model.reconstruct(images, steps=STEPS), images)
    assert many > few + 3, (few, many)


@pytest.mark.slow
def test_the_embedding_is_part_of_the_latent(model, images, latents):
    z, x_T = latents
    options = dict(noise=x_T, inverted=True, guidance=1.0, steps=STEPS)
    right, wrong = (model.decode(x, **options) for x in (z, z[::-1]))
    assert (wrong != right).any() and psnr(wrong, images) < psnr(right, images)


@pytest.mark.slow
def test_noise_of_a_seed_is_what_decode_draws(model, latents):
    z, _ = latents
    options = dict(steps=3, guidance=2.0)
    drawn = model.decode(z, seed=3, first=2, **options)
    close(model.decode(z, noise=model.draw_noise(5, 3, 2), **options), drawn)


@pytest.mark.slow
def test_variations_start_from_the_pictures_noise(model, images):
    options = dict(inverted=True, guidance=1.0, steps=STEPS)
    same = model.variations(images, eta=0.0, **options)
    close(same, model.reconstruct(images, steps=STEPS))
    near = psnr(model.variations(images, eta=0.3, **options), images)
    far = psnr(model.variations(images, eta=1.0, **options), images)
    assert psnr(same, images) > near + 3 > far + 3


@pytest.mark.slow
def test_interpolation_ends_at_both_pictures(model, images):
    a, b = images[:2], images[2:4]
    rows = model.interpolate(a, b, frames=4, steps=STEPS)
    assert rows.shape == (2, 4, 8, 8, 3)
    for k, ends in ((0, a), (-1, b)):
        close(rows[:, k], model.reconstruct(ends, steps=STEPS), most=2)
        assert psnr(rows[:, k], ends) > 35
    assert psnr(rows[:, 1], a) < 35 > psnr(rows[:, 2], b)


@pytest.mark.slow
def test_shared_noise_is_one_per_row(model, images):
    options = dict(frames=3, noise="shared", steps=3, seed=4)
    rows = model.interpolate(images[:2], images[2:4], **options)
    z = model.encode_image(images[:4])
    noise = model.draw_noise(2, 4)
    close(rows[:, 0], model.decode(z[:2], noise=noise, steps=3))
    close(rows[:, -1], model.decode(z[2:], noise=noise, steps=3))


@pytest.mark.slow
def test_text_diff_starts_at_the_picture(model, images):
    options = dict(thetas=(0.0, 0.25, 0.5), steps=STEPS)
    rows = model.text_diff(images, "a cat", "a big umbrella", **options)
    assert rows.shape == (5, 3, 8, 8, 3)
    close(rows[:, 0], model.reconstruct(images, steps=STEPS))
    moved = np.abs(rows[:, 1:].astype(int) - rows[:, :1]).mean((0, 2, 3, 4))
    assert 0.1 < moved[0] < moved[1]
    other = model.text_diff(images, "a big umbrella", "a cat", **options)
    assert (other[:, 1] != rows[:, 1]).any()
    assert model.text_diff(images[:1], "", "a cat", **options).shape[0] == 1


@pytest.mark.slow
def test_text_diff_goes_between_unit_embeddings(model, images, monkeypatch):
    """As the paper's are: a caption with a longer embedding weighs no more."""
    encode_text = model.encode_text
    options = dict(source="a cat", target="a big umbrella", thetas=(0.4,), steps=5)
    rows = model.text_diff(images[:2], **options)
    lengths = np.array([[1.0], [7.0]], np.float32)
    monkeypatch.setattr(model, "encode_text", lambda x, **_: lengths * encode_text(x))
    close(model.text_diff(images[:2], **options), rows)


@pytest.mark.slow
def test_equal_indices_have_all_noise_in_common(model, latents):
    z = latents[0]
    options = dict(sampler="ddpm", steps=5, guidance=1.0, seed=2)
    rows = model.decode(z[[0, 0, 1]], indices=[4, 4, 4], **options)
    np.testing.assert_array_equal(rows[0], rows[1])
    close(rows[2:], model.decode(z[1:2], first=4, **options))


@pytest.mark.slow
def test_pictures_of_any_size(model):
    rng = np.random.default_rng(0)
    odd = [rng.integers(0, 256, s, dtype=np.uint8) for s in ((1, 1, 3), (9, 40, 3))]
    assert model.reconstruct(odd, steps=2).shape == (2, 8, 8, 3)
    assert model.variations(odd, steps=2).shape == (2, 8, 8, 3)


@pytest.mark.slow
def test_rows_depend_neither_on_the_batch_nor_on_the_devices(smooth, model, images):
    options = dict(thetas=(0.0, 0.3), steps=STEPS)
    rows = model.text_diff(images, "", "a cat", **options)  # 10 rows in batches of 8
    close(model.text_diff(images[3], "", "a cat", **options), rows[3:4])
    eight = UnCLIP(smooth, batch_size=16)
    close(eight.text_diff(images, "", "a cat", **options), rows)


@pytest.mark.slow
def test_caption_only_sees_no_embedding(model, images):
    options = dict(guidance=1.0, steps=3, seed=2)
    prompts = [f"picture {word}" for word in ("a", "bb", "ccc", "dddd", "eeeee")]
    z = model.encode_image(images)
    spoken = model.decode(None, prompts, **options)
    assert spoken.shape == (5, 8, 8, 3)
    assert (spoken != model.decode(z, prompts, **options)).any()
    assert (spoken != model.decode(0 * z, prompts, **options)).any()
    # neither caption nor embedding is what guidance contrasts with
    silent = model.decode(None, [""] * 5, **options)
    close(silent, model.decode(z, prompts, **{**options, "guidance": 0.0}))
    assert (silent != spoken).any()


@pytest.mark.slow
def test_known_pixels_stay(model, images):
    z = model.encode_image(images)
    mask = np.zeros((5, 8, 8), bool)
    mask[:, :, :4] = True
    options = dict(keep=(images, mask), steps=5)
    for sampler in ("ddim", "ddpm"):
        drawn = model.decode(z, sampler=sampler, **options)
        close(drawn[mask], images[mask])
        assert np.abs(drawn[~mask].astype(int) - images[~mask]).mean() > 5
    # what is kept tells on the rest
    other = np.where(mask[..., None], 255 - images, images)
    changed = model.decode(z, steps=5, keep=(other, mask))
    assert (changed[~mask] != model.decode(z, **options)[~mask]).any()
    everything = model.decode(z, steps=5, keep=(images, ~mask & False))
    close(everything, model.decode(z, steps=5))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, x: m.invert(x, steps=0), "decoder steps must be a whole number"),
        (lambda m, x: m.invert(x, guidance=float("nan")), "must be a finite number"),
        (lambda m, x: m.invert([]), "no images"),
        (lambda m, x: m.invert(x / 255), "image 0 must be uint8"),
        (lambda m, x: m.interpolate(x, x[:2]), "5 pictures to go from, 2 to go to"),
        (lambda m, x: m.interpolate(x, x, frames=1), "whole number from 2 to"),
        (lambda m, x: m.interpolate(x, x, noise="loud"), "expected one of inverted"),
        (lambda m, x: m.text_diff(x, "a", "b", thetas=()), "no thetas"),
        (lambda m, x: m.text_diff(x, "a", "b", thetas=(2,)), "between 0 and 1"),
        (lambda m, x: m.text_diff(x, "a", "b", thetas=2), "between 0 and 1"),
        (lambda m, x: m.text_diff(x, "a", "a", steps=2), "same embedding"),
        (lambda m, x: m.settings(["decoda"]), "'decoda' in parts: did you mean"),
        (lambda m, x: m.settings(decoder_stepz=2), "did you mean 'decoder_steps'"),
        (lambda m, x: m.decode(None), "neither embeddings nor prompts"),
        (
            lambda m, x: m.decode(None, ["a"], noise=np.zeros((1, 4, 4, 3))),
            r"noise must be finite and \(1, 8, 8, 3\)",
        ),
        (lambda m, x: m.decode(None, ["a"], inverted=True), "no noise that `invert`"),
        (
            lambda m, x: m.decode(
                None, ["a"], noise=x[:1] / 255, inverted=True, sampler="ddpm"
            ),
            "undone by ddim only, not by ddpm",
        ),
        (lambda m, x: m.decode(None, ["a"], indices=[1, 2]), "must be 1 whole numbers"),
        (lambda m, x: m.decode(None, ["a"], indices=[-1]), "must be 1 whole numbers"),
        (lambda m, x: m.variations(x, corrections=1), "corrections=1, which are the"),
        (lambda m, x: m.variations(x, sampler="heun"), "'heun': latents are drawn by"),
        (lambda m, x: m.invert(x, 5, corrections=-1), "corrections must be a whole"),
        (lambda m, x: m.reconstruct(x, steps="ddim7.5"), "decoder steps: sampling"),
        (
            lambda m, x: m.decode(None, ["a"], keep=(x[:1], x[:1, :, :, 0])),
            "masks must be bool",
        ),
    ],
)
def test_bad_arguments(model, images, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, images)


class Steps:
    """A progress that keeps what it is told."""

    def __init__(self):
        self.seen = set()

    def __call__(self, done, total):
        pass

    def step(self, what, step, steps):
        self.seen.add((what, step, steps))


@pytest.mark.slow
@pytest.mark.parametrize("corrections", [0, 1])
def test_the_steps_that_are_made_are_those_that_are_counted(model, images, corrections):
    """Between three timesteps there are two, there and back."""
    progress, options = Steps(), {"steps": 3, "corrections": corrections}
    model.reconstruct(images, **options, progress=progress)
    ways = {(way, i, 2) for way in ("inversion", "decoder") for i in range(2)}
    assert progress.seen == ways


@pytest.mark.slow
def test_options_of_drawing_stay_out_of_inversion(model, images):
    latents = model.invert(images, steps=3)
    options = {"guidance": 1.0, "steps": 3, "dynamic_threshold": 0.5}
    noise = dict(noise=latents[1], inverted=True, sampler="ddim")
    expected = model.decode(latents[0], **noise, **options)
    np.testing.assert_array_equal(model.reconstruct(images, **options), expected)
    assert (model.reconstruct(images, guidance=1.0, steps=3) != expected).any()


def test_impossible_options_are_found_before_inversion(model, images, monkeypatch):
    def invert(*args, **options):
        raise AssertionError("computed something")

    monkeypatch.setattr(model, "invert", invert)
    monkeypatch.setattr(model, "encode_text", invert)
    bad = {"dynamic_threshold": 2.0}
    for draw in (
        lambda: model.reconstruct(images, **bad),
        lambda: model.variations(images, inverted=True, **bad),
        lambda: model.interpolate(images[:1], images[1:2], **bad),
        lambda: model.text_diff(images, "a", "b", **bad),
    ):
        with pytest.raises(ValueError, match="dynamic threshold must be"):
            draw()
