"""The pixel checks on real icons: right ones, wrong ones, noisy and blurred ones."""

import numpy as np
import pytest

from unclip_jax.data.sources.icons import Icons
from unclip_jax.evaluation.metrics import icons

COUNT = 300


@pytest.fixture(scope="module")
def drawn():
    """(source, images uint8, wanted numbers, palette, masks) of all default nouns."""
    source = Icons(split="train", image_size=32, nouns="default", seed=3)
    names, nouns = list(source.colours), list(source.nouns)
    indices = np.random.default_rng(0).choice(len(source), COUNT, replace=False)
    examples = [source[int(i)] for i in indices]
    wanted = {
        "background": np.array([names.index(e["background"]) for e in examples]),
        "glyph_colour": np.array([names.index(e["colour"]) for e in examples]),
        "glyph": np.array([nouns.index(e["noun"]) for e in examples]),
    }
    palette = np.array([source.colours[name] for name in names])
    masks = np.stack([source.mask(noun) for noun in nouns])
    return np.stack([e["image"] for e in examples]), wanted, palette, masks


def rates(images, wanted, palette, masks):
    readings = icons.read_icons(images, palette, masks)
    checks = icons.check_icons(readings, **wanted)
    return {name: hits.mean() for name, hits in checks.items()}


def test_true_icons_pass_every_check(drawn):
    got = rates(*drawn)
    assert tuple(got) == icons.CHECKS
    assert got["background"] == 1.0
    assert got["glyph_colour"] >= 0.99
    assert got["glyph_top1"] >= 0.98
    assert got["glyph_top5"] >= 0.99
    assert got["all"] >= 0.97


def test_shuffled_wishes_score_at_chance(drawn):
    images, wanted, palette, masks = drawn
    shuffled = {
        name: np.random.default_rng(1).permutation(v) for name, v in wanted.items()
    }
    got = rates(images, shuffled, palette, masks)
    colours = len(palette)
    for check in ("background", "glyph_colour"):
        assert 0.2 / colours < got[check] < 2.5 / colours
    assert got["glyph_top1"] < 0.06 and got["glyph_top5"] < 0.15
    assert got["all"] < 0.02


def test_noise_and_blur_cost_little_and_garbage_everything(drawn):
    images, wanted, palette, masks = drawn
    random = np.random.default_rng(2)
    clean = rates(*drawn)

    def noisy(sigma):
        x = images + random.normal(scale=sigma, size=images.shape)
        return rates(np.clip(x, 0, 255).astype(np.uint8), wanted, palette, masks)

    little, much = noisy(12), noisy(150)
    assert little["background"] >= 0.98
    assert little["glyph_colour"] >= 0.95
    assert little["glyph_top1"] >= 0.9
    assert much["all"] < little["all"] <= clean["all"]
    x = images.astype(np.float64)
    blurred = sum(
        np.roll(x, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    )
    got = rates((blurred / 9).astype(np.uint8), wanted, palette, masks)
    assert got["background"] >= 0.98
    assert got["glyph_top1"] >= 0.85
    garbage = random.integers(0, 256, images.shape, dtype=np.uint8)
    assert rates(garbage, wanted, palette, masks)["glyph_top1"] < 0.1


def test_a_wrong_colour_does_not_cost_the_shape(drawn):
    images, wanted, palette, masks = drawn
    got = rates(images[..., ::-1], wanted, palette, masks)  # BGR
    assert got["glyph_colour"] < 0.8
    assert got["glyph_top1"] >= 0.95


def test_a_shifted_glyph_is_still_found(drawn):
    images, wanted, palette, masks = drawn
    moved = np.roll(images, (1, -1), axis=(1, 2))
    assert rates(moved, wanted, palette, masks)["glyph_top1"] >= 0.9


def test_scaled_and_shifted_glyphs_are_found_with_their_alternatives():
    source = Icons(split="train", image_size=48, nouns=24, jitter=0.3)
    names, nouns = list(source.colours), source.nouns
    examples = [source[i] for i in range(120)]
    images = np.stack([e["image"] for e in examples])
    palette = np.array([source.colours[name] for name in names])
    masks = np.stack([source.mask(noun) for noun in nouns])
    assert icons.placed(masks, 0.0).shape == (24, 1, 48, 48)
    many = icons.placed(masks, source.jitter)
    assert many.shape == (24, 5, 48, 48)
    wanted = np.array([nouns.index(e["noun"]) for e in examples])

    def found(masks, **options):
        readings = icons.read_icons(images, palette, masks, max_shift=1, **options)
        return (readings.glyphs[:, 0] == wanted).mean()

    assert found(many, centred=True) >= 0.97
    assert found(masks) < 0.9 < found(many, centred=True)


def test_an_empty_picture_has_no_glyph(drawn):
    _, wanted, palette, masks = drawn
    plain = np.broadcast_to(
        palette[wanted["background"]][:, None, None], (COUNT, 32, 32, 3)
    )
    readings = icons.read_icons(plain.astype(np.uint8), palette, masks)
    assert (readings.glyphs == icons.NONE).all()
    checks = icons.check_icons(readings, **wanted)
    assert checks["background"].all()
    assert not checks["glyph_colour"].any() and not checks["glyph_top5"].any()


def test_other_shapes_are_refused(drawn):
    images, _, palette, masks = drawn
    with pytest.raises(ValueError, match="at the images' size"):
        icons.read_icons(images[:, :16], palette, masks)
    with pytest.raises(ValueError, match="uint8"):
        icons.read_icons(images.astype(np.float32), palette, masks)
