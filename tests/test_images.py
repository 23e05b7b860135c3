"""Images from files and to files; the same rules wherever a file is read."""

import logging
import os
import subprocess

import numpy as np
import pytest
from PIL import Image

from unclip_jax.data.sources import BadRecord
from unclip_jax.data.sources.image_source import decode
from unclip_jax.evaluation.image_sets import FolderImages
from unclip_jax.generation.cli.command import describe
from unclip_jax.generation.page import forms
from unclip_jax.images import (
    find_images,
    fit,
    read_image,
    read_mask,
    read_metadata,
    save_image,
)

PICTURE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def halves(left, right):
    """16 x 16: the left half of one color, the right half of another."""
    image = np.empty((16, 16, 3), np.uint8)
    image[:, :8], image[:, 8:] = left, right
    return image


RED, WHITE = (255, 0, 0), (255, 255, 255)
# every kind of file shows this, but for what JPEG loses
SHOWN = halves(RED, WHITE)


def write_alpha(path):
    hidden = np.dstack([halves(RED, (0, 0, 90)), np.zeros((16, 16), np.uint8)])
    hidden[:, :8, 3] = 255  # what is under full transparency is not to be seen
    Image.fromarray(hidden).save(path, "PNG")


def write_cmyk(path):
    Image.fromarray(SHOWN).convert("CMYK").save(path, "JPEG", quality=100)


def write_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    Image.fromarray(np.rot90(SHOWN).copy()).save(path, "PNG", exif=exif)


def write_animation(path):
    frames = [Image.fromarray(image) for image in (SHOWN, 255 - SHOWN)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def write_16_bits(path):
    gray = np.repeat(np.array([0x8000, 0xFFFF], np.uint16), 8)[None].repeat(16, 0)
    Image.fromarray(gray).save(path, "PNG")


KINDS = {  # file's name -> (writer, what one sees, tolerance)
    "alpha.png": (write_alpha, SHOWN, 0),
    "cmyk.jpg": (write_cmyk, SHOWN, 40),  # JPEG's colors bleed at the edge
    "rotated.png": (write_rotated, SHOWN, 0),
    "animation.gif": (write_animation, SHOWN, 0),
    "16 bits.png": (write_16_bits, halves((128,) * 3, WHITE), 0),
}


def evaluate(path, *crop):
    return FolderImages(path.parent, *crop)[:][0]


READERS = {
    "sample": lambda path: read_image(path, 16),
    "page": lambda path: fit(forms.open_image(str(path), "a picture"), 16),
    "evaluate": evaluate,
    "evaluate, cropped": lambda path: evaluate(path, "shorter_side", 16),
    "sources": lambda path: decode(path.read_bytes(), 16, path.name),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", KINDS)
def test_every_reader_sees_the_same_image(tmp_path, reader, name):
    write, shown, tolerance = KINDS[name]
    write(tmp_path / name)
    image = READERS[reader](tmp_path / name)
    assert image.dtype == np.uint8 and image.shape == shown.shape
    difference = np.abs(image.astype(int) - shown)
    assert difference.max() <= tolerance and difference.mean() <= tolerance / 10


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_a_file_cut_short(tmp_path, reader):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / "short.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises((ValueError, BadRecord), match="short.png"):
        READERS[reader](path)


def make_file(path, kind):
    """A file that is no image; what a message about it must say."""
    if kind == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        return "git lfs pull"
    if kind == "empty":
        path.touch()
        return ""
    if kind == "eps":  # for which Pillow would start Ghostscript
        text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
        path.write_text(text + "showpage\n%%EOF\n")
        return "EPS, not pixels"
    if kind == "html":
        path.write_text("<html>gone</html>")
        return "not an image"
    Image.new("L", (300, 300)).save(path, "PNG")  # "huge": with a limit of 100 pixels
    return "more than the 200 pixels"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["lfs", "empty", "eps", "html", "huge"])
def test_every_reader_explains_what_is_no_image(tmp_path, monkeypatch, reader, kind):
    message = make_file(tmp_path / "x.png", kind)
    if kind == "huge":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(subprocess, "check_call", None)
    with pytest.raises((ValueError, BadRecord), match=f"x.png.*{message}"):
        READERS[reader](tmp_path / "x.png")


def test_an_image_with_damaged_exif_is_shown_as_it_lies(tmp_path):
    damaged = b"Exif\0\0MM\0*" + bytes(range(200, 256))
    Image.fromarray(SHOWN).save(tmp_path / "a.png", exif=damaged)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), SHOWN)


def test_only_regular_files_are_images(tmp_path, caplog):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    os.symlink("/dev/zero", tmp_path / "c.png")
    os.symlink("nowhere", tmp_path / "d.png")
    os.symlink("a.png", tmp_path / "e.png")
    (tmp_path / "f.png").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [p.name for p in find_images([tmp_path])] == ["a.png", "e.png"]
    assert "3 names are no readable files" in caplog.text
    for name, problem in (("b", "a FIFO"), ("c", "a device"), ("d", "a link to n")):
        path = tmp_path / f"{name}.png"
        with pytest.raises(ValueError, match=f"{name}.png.*is {problem}"):
            read_image(path)
    with pytest.raises(ValueError, match="b.png' is a FIFO"):
        find_images([tmp_path / "b.png"])


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
    with pytest.raises(ValueError, match="too large an image"):
        read_image(tmp_path / "a.png", 8)


def test_folders_become_their_pictures(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    found = find_images([tmp_path, tmp_path / "notes.txt"])
    assert [f.name for f in found] == ["a.JPG", "b.png", "notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images"):
        find_images([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_images([tmp_path / "none.png"])


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "none.png", 8)
    (tmp_path / "a.png").write_text("")
    with pytest.raises(ValueError, match="not a readable image"):
        read_image(tmp_path / "a.png", 8)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a readable image"):
        read_image(tmp_path / "a.png", 8)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "b.png")
    data = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a readable image"):
        read_image(tmp_path / "b.png", 8)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_pictures_and_their_metadata_come_back(tmp_path, suffix):
    path = tmp_path / "new" / f"a.{suffix}"
    texts = describe(7, {"eta": 0.5}, prompt="ein rotes Herz ❤\n心", index=3)
    save_image(path, PICTURE, texts)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), PICTURE)
    read = read_metadata(path)
    assert read["prompt"] == "ein rotes Herz ❤\n心" and read["seed"] == "7"
    assert read["settings"] == '{"eta": 0.5}' and "jax" in read["software"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_bad_pictures(tmp_path):
    with pytest.raises(ValueError, match="should end in png or webp"):
        save_image(tmp_path / "a.jpg", PICTURE)
    with pytest.raises(ValueError, match="must be uint8"):
        save_image(tmp_path / "a.png", PICTURE / 255)
    assert not list(tmp_path.iterdir())


def test_masks_are_white_or_painted(tmp_path):
    file, image = tmp_path / "mask.png", np.zeros((64, 128, 3), np.uint8)
    square = np.zeros((64, 128), bool)
    square[24:40, 56:72] = True
    white = np.where(square, 255, 0).astype(np.uint8)
    for color in (0, 128, 255):  # a stroke of any color on a transparent layer
        layer = np.full((64, 128, 4), color, np.uint8)
        layer[..., 3] = white
        Image.fromarray(layer).save(file)
        np.testing.assert_array_equal(read_mask(file, [image]), square)
    for mask in (white, np.repeat(white[..., None], 3, -1), square):
        Image.fromarray(mask).save(file)
        np.testing.assert_array_equal(read_mask(file, [image]), square)
    with pytest.raises(ValueError, match="mask.png' is 128x64, but an image 64x128"):
        read_mask(file, [image, image.transpose(1, 0, 2)])
