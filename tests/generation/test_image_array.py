"""Images that save themselves and show in notebooks, and the model's description."""

import io

import numpy as np
import pytest
from PIL import Image

from unclip_jax.generation.image_array import ImageArray
from unclip_jax.images import read_image


@pytest.fixture
def rows():
    """2 rows of 3 images of 5x4 pixels."""
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4, 3), np.uint8)
    return values.view(ImageArray)


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_one_image_is_saved_and_shown(rows, tmp_path):
    image = rows[0][1]
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    shown = opened(image._repr_png_())
    factor = len(shown) // 5
    assert min(shown.shape[:2]) >= 128
    np.testing.assert_array_equal(shown[::factor, ::factor], image)
    rows[:1, 0].save(tmp_path / "b.webp")  # a batch of one is that one
    np.testing.assert_array_equal(read_image(tmp_path / "b.webp"), rows[0, 0])


def test_several_are_a_grid_or_a_folder(rows, tmp_path):
    shown = opened(rows._repr_png_())
    assert shown.shape[1] > shown.shape[0]  # 2 rows of 3, as they are
    rows.save(tmp_path / "grid.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grid.png"), shown)
    rows[0].save(tmp_path / "folder")
    names = sorted(file.name for file in (tmp_path / "folder").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]


def test_it_is_an_array_and_what_is_no_image_does_not_show(rows):
    assert type(np.asarray(rows)) is np.ndarray
    np.testing.assert_array_equal(np.asarray(rows)[1], rows[1])
    for other in (rows[..., 0], rows.astype(float), rows == rows, rows[:0]):
        assert other._repr_png_() is None
    with pytest.raises(ValueError, match="must be uint8 .*float64"):
        rows.astype(float).save("x.png")


@pytest.mark.slow
def test_the_model_draws_them_and_takes_them_back(model):
    images = model.text2image(["a cat", "a dog"], prior_steps=1, decoder_steps=1)
    assert isinstance(images, ImageArray) and images[0]._repr_png_()
    assert type(model.encode_image(images)) is np.ndarray


def test_a_model_says_what_it_is(model):
    lines = repr(model).splitlines()
    assert lines[0] == "UnCLIP of exports/tiny"
    kinds = [line.split(":")[0].strip() for line in lines[1:]]
    assert kinds == ["clip", "prior", "ar_prior", "decoder"]
    assert "8x8 pixels" in lines[1] and "CLIP tiny" in lines[1]
    assert "captions of 6 tokens" in lines[1]
    assert "steps 20, sampler ddpm, variance fixed_small, guidance 4.0" in lines[2]
    assert "guidance 8.0" in lines[4]
