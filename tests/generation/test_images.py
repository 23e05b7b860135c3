"""Pictures from files."""

import numpy as np
import pytest
from PIL import Image

from unclip_jax.generation.images import find_pictures, read_image


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


def test_dark_16_bit_pictures_stay_dark(tmp_path):
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").max() <= 1


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    read = read_image(tmp_path / "a.gif", 8)
    assert (read == np.array([255, 0, 0])).all(-1).mean() > 0.9


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(0, (0, 0, 8, 4))
    image.save(tmp_path / "a.png", transparency=0)
    read = read_image(tmp_path / "a.png", 8)
    assert (read[:4] == 255).all() and (read[4:] == np.array([255, 0, 0])).all()


def test_one_pixel_and_long_strips(tmp_path):
    for size in ((1, 1), (1, 300), (300, 1)):
        Image.new("RGB", size, (7, 8, 9)).save(tmp_path / "a.png")
        read = read_image(tmp_path / "a.png", 8)
        assert read.shape == (8, 8, 3) and (read == np.array([7, 8, 9])).all()


def test_a_picture_that_claims_to_be_huge(tmp_path, monkeypatch):
    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="too large a picture"):
        read_image(tmp_path / "a.png", 8)


def test_folders_become_their_pictures(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    found = find_pictures([tmp_path, tmp_path / "notes.txt"])
    assert [f.name for f in found] == ["a.JPG", "b.png", "notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_pictures([tmp_path / "none.png"])


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "none.png", 8)
    (tmp_path / "a.png").write_text("")
    with pytest.raises(ValueError, match="not a readable picture"):
        read_image(tmp_path / "a.png", 8)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a readable picture"):
        read_image(tmp_path / "a.png", 8)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "b.png")
    data = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a readable picture"):
        read_image(tmp_path / "b.png", 8)
