"""Pictures from files."""

import numpy as np
import pytest
from PIL import Image

from unclip_jax.generation.images import read_image


def test_exact_size_is_untouched(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 8), image)


def test_centre_square_is_kept(tmp_path):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 10:70] = 200
    Image.fromarray(image).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 10) == 200).all()


def test_transparency_becomes_white(tmp_path):
    image = np.zeros((8, 8, 4), np.uint8)
    image[:4, :, 3] = 255  # black above, transparent below
    Image.fromarray(image).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", 8)
    assert (read[:4] == 0).all() and (read[4:] == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "LA"])
def test_other_modes(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 32896, np.uint16))
    else:
        image = Image.new("RGB", (8, 8), (128, 128, 128)).convert(mode)
    path = tmp_path / f"a.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(path)
    read = read_image(path, 8)
    assert read.shape == (8, 8, 3) and read.dtype == np.uint8
    if mode != "1":
        assert abs(int(read.mean()) - 128) <= 3


def test_rotation_is_applied(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    image[0] = 255  # bright top row
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png", 8)
    assert (read[:, -1] == 255).all() and (read[:, 0] == 0).all()


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "none.png", 8)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a readable picture"):
        read_image(tmp_path / "a.png", 8)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "b.png")
    data = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a readable picture"):
        read_image(tmp_path / "b.png", 8)
