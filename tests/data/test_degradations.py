"""Crops and degraded small pictures: what they are, and that they can be repeated."""

import itertools

import numpy as np
import pytest

from unclip_jax.data import degradations
from unclip_jax.data.loader import open_data

ICONS = dict(source="icons", nouns=4, colours=4, backgrounds=4, image_size=32)
BSR = dict(kind="bsr", crop=16, scale=4)
NAMES = ("image", "low_res", "tokens")


def rng(seed=0):
    return np.random.default_rng(seed)


def smooth_picture(side=128):
    """Grey waves with a tint: they survive being made four times smaller, and JPEG."""
    y, x = np.mgrid[:side, :side] * (2 * np.pi / side)
    waves = np.sin(x + 2 * y) + np.cos(2 * x)
    return (127.5 + 40 * waves[..., None] + np.array([30, 0, -30])).astype(np.uint8)


def some(data, names=NAMES, n=3, **options):
    options = {"seed": 3, "batch_size": 8, **options}
    return list(itertools.islice(data.batches(names, **options), n))


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert list(x) == list(y)
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], name)


def test_crops_are_parts_of_the_picture_from_everywhere():
    image = np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)
    draw = rng()
    corners = set()
    for _ in range(300):
        crop = degradations.random_crop(image, 4, draw)
        top, left = np.divmod(int(crop[0, 0, 0]) // 3, 6)
        np.testing.assert_array_equal(crop, image[top : top + 4, left : left + 4])
        corners.add((int(top), int(left)))
    assert corners == set(itertools.product(range(3), range(3)))


def test_a_degraded_picture_is_the_smaller_one_and_some_damage():
    image = smooth_picture()
    ideal = image.reshape(32, 4, 32, 4, 3).mean((1, 3))
    made = [degradations.bsr(image, 4, rng(seed)) for seed in range(60)]
    errors = [np.abs(small - ideal).mean() for small in made]
    assert all(small.shape == (32, 32, 3) for small in made)
    assert made[0].dtype == np.uint8
    assert 0.3 < min(errors) and max(errors) < 20  # of 255; another one is at 45
    assert np.std(errors) > 0.5  # from light to heavy
    assert len({small.tobytes() for small in made}) == 60
    # no drift: over many, colours and places stay (2.0; a pixel to the side is 9.7)
    assert np.abs(np.mean(made, 0) - ideal).mean() < 4


def test_a_picture_of_another_scale():
    assert degradations.bsr(smooth_picture(), 2, rng()).shape == (64, 64, 3)


@pytest.mark.parametrize("kernel", ["linear", "cubic", "area", "cubic_antialiased"])
@pytest.mark.parametrize("size", [(5, 9), (32, 20), (16, 16)])
def test_resizing_keeps_constants_and_gradients(kernel, size):
    y, x = np.mgrid[:16, :16]
    ramp = np.stack([np.ones_like(x), x, y], -1).astype(np.float32)
    out = degradations.resize(ramp, size, kernel)
    assert out.shape == (*size, 3)
    np.testing.assert_allclose(out[..., 0], 1, atol=1e-5)
    centres = [(np.arange(n) + 0.5) * 16 / n - 0.5 for n in size]
    inner = slice(3, -3) if min(size) > 8 else slice(2, -2)  # edges are replicated
    np.testing.assert_allclose(out[size[0] // 2, inner, 1], centres[1][inner], atol=0.3)
    np.testing.assert_allclose(out[inner, size[1] // 2, 2], centres[0][inner], atol=0.3)


def test_kernels_are_gaussians_of_their_variances():
    k = degradations.gaussian(25, (4.0, 1.0), np.pi / 2)
    offsets = np.arange(25) - 12
    assert k.sum() == pytest.approx(1, abs=1e-5)
    # turned by 90 degrees: the first variance is the vertical one
    assert (k.sum(1) * offsets**2).sum() == pytest.approx(4, rel=1e-2)
    assert (k.sum(0) * offsets**2).sum() == pytest.approx(1, rel=1e-2)
    image = np.zeros((31, 31, 1), np.float32)
    image[15, 15] = 1
    np.testing.assert_allclose(
        degradations.blur(image, k)[3:28, 3:28, 0], k, atol=1e-5 * k.max()
    )


def test_noise_is_as_strong_as_it_says():
    grey = np.full((64, 64, 3), 0.5, np.float32)
    stds = [255 * (degradations.add_noise(grey, rng(s)) - 0.5).std() for s in range(80)]
    assert 0.1 < min(stds) and max(stds) < 2.3
    assert np.mean(stds) == pytest.approx(1.4, abs=0.2)


def test_both_feeds_degrade_alike():
    a, b = (
        some(open_data({**ICONS, "feed": feed, "degradation": BSR}))
        for feed in ("tf", "arrays")
    )
    assert_same(a, b)
    assert a[0]["image"].shape == (8, 16, 16, 3)
    assert a[0]["low_res"].shape == (8, 4, 4, 3)
    assert a[0]["low_res"].dtype == np.uint8
    assert not np.array_equal(a[0]["image"], a[1]["image"])


def test_processes_and_starts_change_nothing():
    data = open_data({**ICONS, "feed": "arrays", "degradation": BSR})
    whole = some(data)
    count = len(whole[0]["image"])
    for rows in (range(count // 2), range(count // 2, count), [0, 3]):
        part = [{name: a[list(rows)] for name, a in batch.items()} for batch in whole]
        assert_same(some(data, rows=rows), part)
    assert_same(some(data, n=1, start_step=2), whole[2:])
    other = some(data, n=1, seed=4)
    assert not np.array_equal(other[0]["image"], whole[0]["image"])


def test_the_same_example_is_cropped_otherwise_each_time():
    data = open_data({**ICONS, "feed": "arrays", "degradation": BSR})
    n = len(data)
    first, *_, second = some(data, ["image"], n + 1, batch_size=1)
    assert first["image"].shape == second["image"].shape
    seen = {b["image"].tobytes() for b in some(data, ["image"], 2, batch_size=n)}
    assert len(seen) == 2


def test_crops_alone_and_what_is_known_of_them():
    crop = dict(kind="crop", crop=8)
    data = open_data({**ICONS, "feed": "arrays", "degradation": crop})
    assert data.spec.image_size == 32 and data.spec.crop_size == 8
    assert data.spec.low_res_size is None
    assert data.take(5, ["image"])["image"].shape == (5, 8, 8, 3)
    with pytest.raises(ValueError, match="no 'low_res'"):
        data.take(1, ["low_res"])
    data = open_data({**ICONS, "feed": "arrays", "degradation": BSR})
    assert data.spec.low_res_size == 4
    assert list(data.take(2, ["low_res"])) == ["low_res"]
    assert data.take(2, ["tokens"])["tokens"].shape[0] == 2
    plain = open_data({**ICONS, "feed": "arrays"})
    assert plain.spec.crop_size is None


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kind="bsr", crop=64), "crop 64: expected 1 to 32"),
        (dict(kind="bsr", crop=12), "12 must be a multiple of twice the scale 4"),
        (dict(kind="blur", crop=8), "kind 'blur': expected one of"),
        (dict(kind="crop"), "config.data.degradation lacks 'crop'"),
        (dict(kind="crop", corp=3), "did you mean 'crop'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        open_data({**ICONS, "degradation": options})
