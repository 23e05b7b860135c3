"""Text of any script: drawn, measured, and told where no font has it."""

import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from unclip_jax import fonts, grids

SCRIPTS = ("éßőñ", "жбя", "αβγ", "חתול", "قطة", "बिल्ली", "แมว", "ქარ")


def drawn(text, size=16):
    face, image = fonts.Typeface(size), Image.new("L", (160, 40), 255)
    face.draw(ImageDraw.Draw(image), (2, 2), [text], 0)
    return np.asarray(image)


@pytest.mark.parametrize("text", SCRIPTS)
def test_scripts_are_no_boxes(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = drawn(text)
    alone = [drawn(character) for character in text]
    assert image.min() == 0
    different = {one.tobytes() for one in alone}
    assert len(different) == len(set(text))


def test_english_looks_as_pillow_draws_it():
    font, image = ImageFont.load_default(16), Image.new("L", (160, 40), 255)
    face = fonts.Typeface(16)
    baseline = 2 + max(ascent for ascent, _ in face._metrics)
    ImageDraw.Draw(image).text((2, baseline), "a cat", 0, font, anchor="ls")
    np.testing.assert_array_equal(drawn("a cat"), np.asarray(image))
    assert face.getlength("a cat") == font.getlength("a cat")


def test_lengths_of_runs_add_up():
    face = fonts.Typeface(16)
    whole = face.getlength("cat кот")
    assert whole == pytest.approx(face.getlength("cat ") + face.getlength("кот"))


def test_what_no_font_has_is_told(monkeypatch):
    fonts._font_of.cache_clear()

    monkeypatch.setattr(fonts, "_has", lambda number, character: False)
    with pytest.warns(
        UserWarning, match=r"no font on this machine has '猫' \(CJK UNIF"
    ):
        grids.caption_grid([np.zeros((96, 96, 3), np.uint8)], ["猫"])
    fonts._font_of.cache_clear()


def test_the_system_is_asked_last(monkeypatch, tmp_path):
    file = tmp_path / "NotoSansCJK-Regular.otf"
    file.write_bytes(fonts._firago())
    (tmp_path / "NotoSansCJK-Bold.otf").write_bytes(b"no font")
    (tmp_path / "readme.txt").write_text("x")
    monkeypatch.setattr(fonts.pathlib.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(fonts.sys, "platform", "darwin")
    (tmp_path / "Library").mkdir()
    (tmp_path / "Library/Fonts").symlink_to(tmp_path)
    fonts._system_fonts.cache_clear()
    try:
        names = [name.rpartition("/")[2] for name in fonts._system_fonts()]
    finally:
        fonts._system_fonts.cache_clear()
    assert names[:2] == ["NotoSansCJK-Regular.otf", "NotoSansCJK-Bold.otf"]
