"""Text of any script in images, each character in the first font that has it.

Pillow's own font draws English. FiraGO, of the package pymupdf-fonts, draws Latin,
Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai and Georgian; Chinese, Japanese,
Korean and emoji come from the fonts that the system has. What none of them has is drawn
as a box, and a warning says so.
"""

import functools
import io
import itertools
import os
import pathlib
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any

from PIL import ImageDraw, ImageFont

_ABSENT = "\U0010fffe"  # in no font: a noncharacter
# Of system fonts, those whose names hold one of these, in this order, are looked into.
_WIDE = ("notosanscjk", "sourcehansans", "wqy", "droidsansfallback", "arialuni")
_WIDE += ("pingfang", "hiragino", "applesdgothic", "msyh", "yugoth", "malgun", "nanum")
_WIDE += ("ipag", "unifont", "notoemoji", "symbola", "seguiemj", "dejavusans.", "noto")


class Typeface:
    """One size of text. Measures and draws, as a font of Pillow's does a script's."""

    def __init__(self, size: int):
        self.size = size
        fonts = [_sized(0, size), _sized(1, size)]
        self._metrics = [font.getmetrics() for font in fonts]

    @property
    def line_height(self) -> int:
        """Pixels from one line to the next."""
        ascent, descent = (max(side) for side in zip(*self._metrics, strict=True))
        return ascent + descent + 1

    def getlength(self, text: str) -> float:
        """The width of a line of text, in pixels."""
        return sum(font.getlength(part) for part, font in self._runs(text))

    def draw(self, draw: ImageDraw.ImageDraw, xy, lines, fill="black") -> None:
        """Draws lines of text, the first with its top left corner at `xy`."""
        x, y = xy
        baseline = max(ascent for ascent, _ in self._metrics)
        for number, line in enumerate(lines):
            at = x
            for part, font in self._runs(line):
                place = (at, y + baseline + number * self.line_height)
                draw.text(place, part, fill, font, anchor="ls")
                at += font.getlength(part)

    def _runs(self, text) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
        """Parts of a text that one font draws."""
        numbers: list[int] = []
        for character in text:
            joins = character.isspace() or unicodedata.combining(character)
            number = numbers[-1] if joins and numbers else _font_of(character)
            numbers.append(number)
        pairs = zip(text, numbers, strict=True)
        for number, group in itertools.groupby(pairs, lambda pair: pair[1]):
            yield (
                "".join(character for character, _ in group),
                _sized(number, self.size),
            )


@functools.lru_cache(maxsize=16384)
def _font_of(character: str) -> int:
    """The number of the first font that has a character; 0 if none has."""
    if not character.isprintable():
        return 0
    for number in range(2 + len(_system_fonts())):
        if _has(number, character):
            return number
    name = unicodedata.name(character, f"U+{ord(character):04X}")
    warnings.warn(
        f"no font on this machine has {character!r} ({name}), which is drawn as a box: "
        "install one for its script, such as Noto's",
        stacklevel=2,
    )
    return 0


def _has(number, character):
    try:
        font = _sized(number, 16)
        mask: Any = font.getmask(character)
        absent: Any = font.getmask(_ABSENT)
    except OSError:  # a file that is no font, or one of bitmaps of another size
        return False
    return mask.size != absent.size or bytes(mask) != bytes(absent)


@functools.lru_cache(maxsize=256)
def _sized(number: int, size: int) -> ImageFont.FreeTypeFont:
    """Font 0 is Pillow's, 1 FiraGO, then come the system's."""
    if number == 0:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow has FreeType
        return font
    if number == 1:
        return ImageFont.truetype(io.BytesIO(_firago()), size)
    return ImageFont.truetype(_system_fonts()[number - 2], size)


@functools.cache
def _firago() -> bytes:
    import pymupdf_fonts

    return pymupdf_fonts.myfont("figo")


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    """Font files that may have other scripts, the likeliest first."""
    home = pathlib.Path.home()
    folders = {
        "darwin": ["/System/Library/Fonts", "/Library/Fonts", home / "Library/Fonts"],
        "win32": [pathlib.Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"],
    }.get(sys.platform, ["/usr/share/fonts", "/usr/local/share/fonts", home / ".fonts"])
    files = []
    for folder in map(pathlib.Path, folders):
        for root, _, names in os.walk(folder):
            for name in names:
                plain = name.lower().replace("-", "").replace("_", "")
                rank = [i for i, part in enumerate(_WIDE) if part in plain]
                if rank and plain.endswith((".ttf", ".otf", ".ttc")):
                    regular = "bold" not in plain and "italic" not in plain
                    files.append((rank[0], not regular, str(pathlib.Path(root, name))))
    return tuple(file for *_, file in sorted(files)[:32])
