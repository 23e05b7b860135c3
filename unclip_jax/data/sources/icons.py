"""Icons: glyphs with names, drawn in one colour on another, with captions.

The glyphs are the 7,296 Material Design icons of the PyPI package
fonticon-materialdesignicons7 (Apache-2.0), a font with a name for each glyph. Example i
is a function of (seed, i): reading one costs O(1) wherever it is, and no image is
stored. About 15% of all (noun, colour, background) combinations, chosen by a hash of
the three words alone, are held out: the split "train" never draws them and
"validation" draws nothing else, so that composition can be measured.
"""

import difflib
import functools
import hashlib
import json
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unclip_jax.data import order
from unclip_jax.errors import UsageError
from unclip_jax.files import sha256_file

# Everyday nouns whose glyph shows the noun and reads at 32 pixels. The order matters:
# after ten familiar ones each next noun is the solid silhouette least like those
# before it, so that the first 24, 32, 48 are about as distinct as can be.
DEFAULT_NOUNS = tuple(
    noun.replace("_", " ")
    for noun in """
    umbrella heart star moon cat house fish key cup airplane castle watch gift phone
    snake magnet robot wrench footprint saxophone saw bed bowl hand piano puzzle map
    microscope bus dolphin spoon paw tulip chair duck bottle bone dog axe submarine
    broom hat sun truck balloon hamburger hourglass owl pig rabbit church television
    camera book lamp sheep sword snail sailboat microphone pencil rocket bird cherry
    clover bat pine_tree ghost horse helicopter mushroom jellyfish volcano apple crown
    flag leaf spider cupcake trophy sofa mountain pizza lighthouse eye skull butterfly
    suitcase car candle cake lightbulb penguin backpack anchor cloud snowflake flame
    turtle elephant guitar cactus clock tooth knife bicycle bell tree
    """.split()
)

# Default noun -> name of its glyph, where they differ.
GLYPHS = {
    "apple": "food apple",
    "backpack": "bag personal",
    "bottle": "bottle wine",
    "cake": "cake variant",
    "car": "car side",
    "chair": "chair rolling",
    "cherry": "fruit cherries",
    "cup": "coffee",
    "dog": "dog side",
    "flame": "fire",
    "footprint": "foot print",
    "guitar": "guitar acoustic",
    "hand": "hand back right",
    "hat": "hat fedora",
    "hourglass": "timer sand full",
    "house": "home",
    "moon": "moon waning crescent",
    "mountain": "image filter hdr",
    "sailboat": "sail boat",
    "saw": "hand saw",
    "spoon": "silverware spoon",
    "suitcase": "bag suitcase",
    "sun": "white balance sunny",
    "television": "television classic",
    "tulip": "flower tulip",
}

# At least 95 apart in RGB; the first n are the most distinct.
COLOURS = {
    "red": (220, 30, 35),
    "blue": (35, 75, 215),
    "yellow": (255, 225, 50),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "green": (30, 150, 55),
    "purple": (130, 45, 175),
    "orange": (250, 135, 20),
    "teal": (0, 175, 180),
    "pink": (255, 150, 195),
    "gray": (130, 130, 130),
    "brown": (115, 65, 25),
}

# {a_colour} is the colour with its article: "a red", "an orange".
TEMPLATES = (
    "{a_colour} {noun} on {a_background} background",
    "{a_colour} {noun} on {background}",
    "{a_colour} {noun} in front of {a_background} background",
    "{colour} {noun}, {background} background",
    "a picture of {a_colour} {noun} on {background}",
    "an icon of {a_colour} {noun} against {a_background} background",
    "{a_background} background with {a_colour} {noun}",
    "{a_colour} {noun} drawn on {a_background} background",
)

SPLITS = ("train", "validation", "held_out", "all")  # held_out is validation
HELD_OUT = 0.15  # of all combinations


class Icons:
    """A source of icons (see the module).

    Attributes:
      nouns: list of str, as they stand in captions.
      colours: {name: (r, g, b)} of glyphs and backgrounds.
      fingerprint: str, a function of every option and of the font.
    """

    def __init__(
        self,
        split: str = "train",
        image_size: int = 32,  # pixels, square
        nouns="default",  # "default", "full", the first n of default, or a list
        colours="all",  # of the glyph: "all", the first n, or a list of names
        backgrounds="all",  # likewise
        seed: int = 0,
        size: float = 0.875,  # side of the glyph's square, a fraction of the image's
        jitter: float = 0.0,  # 0: centred; j: scaled by [1 - j, 1] and shifted
        num_examples: int | None = None,  # None: each combination in each wording
    ):
        """Raises UsageError for options that cannot be."""
        if split not in SPLITS:
            raise UsageError(
                f"config.data.split {split!r}: expected one of {', '.join(SPLITS)}"
            )
        if not 8 <= image_size <= 4096:
            raise UsageError(
                f"config.data.image_size must be 8 to 4096 pixels, got {image_size}"
            )
        if not 0.1 <= size <= 1 or not 0 <= jitter < 1:
            raise UsageError(
                f"expected 0.1 <= size <= 1 and 0 <= jitter < 1, got {size}, {jitter}"
            )
        self.split = "validation" if split == "held_out" else split
        self.image_size, self.seed = int(image_size), int(seed)
        self.size, self.jitter = float(size), float(jitter)
        self._glyphs = _choose_nouns(nouns)  # noun -> character of the font
        self.nouns = list(self._glyphs)
        self._fore = _choose_colours(colours, "colours")
        self._back = _choose_colours(backgrounds, "backgrounds")
        used = {*self._fore, *self._back}
        self.colours = {name: rgb for name, rgb in COLOURS.items() if name in used}
        self._combinations = self._allowed()  # int32, in the order of the seed
        if not len(self._combinations):
            raise UsageError(
                f"no combination of {len(self.nouns)} nouns, {len(self._fore)} colours "
                f"and {len(self._back)} backgrounds is in split {split!r}; name more"
            )
        count = len(self._combinations) * len(TEMPLATES)
        self._length = count if num_examples is None else int(num_examples)
        if self._length < 1:
            raise UsageError(f"num_examples must be at least 1, got {num_examples}")
        # The same margin on all sides, so that the glyph is centred to the pixel.
        self._pixels = self.image_size - 2 * round(self.image_size * (1 - size) / 2)
        self.fingerprint = self._fingerprint()

    def __len__(self):
        return self._length

    def __getitem__(self, i: int):
        """Draws example i.

        {"key", "image" uint8 (S, S, 3), "caption", "noun", "colour", "background",
        "caption_group"}. Raises IndexError outside [0, len).
        """
        noun, colour, background, caption = self._describe(i)
        pixels, top, left = self._place(i)
        coverage = np.zeros((self.image_size, self.image_size), np.uint8)
        inside = (slice(top, top + pixels), slice(left, left + pixels))
        coverage[inside] = _coverage(self._glyphs[noun], pixels)
        blends = _blends(COLOURS[colour], COLOURS[background])
        return {
            "key": f"{self.split}-{i:08d}",
            "image": blends.take(coverage, axis=0),
            "caption": caption,
            "noun": noun,
            "colour": colour,
            "background": background,
            "caption_group": (noun, colour, background),  # whatever the wording
        }

    def captions(self, n: int | None = None) -> list[str]:
        """The captions of the first n examples (None: of all)."""
        count = len(self) if n is None else min(n, len(self))
        return [self._describe(i)[3] for i in range(count)]

    def mask(self, noun: str) -> np.ndarray:
        """float32 (S, S): how much of each pixel the centred glyph covers, in [0, 1].

        Raises UsageError for a noun that is not of this source.
        """
        if noun not in self._glyphs:
            raise UsageError(f"{noun!r} is not a noun of this source{_near(noun)}")
        start = (self.image_size - self._pixels) // 2
        end = self.image_size - self._pixels - start
        coverage = _coverage(self._glyphs[noun], self._pixels) / np.float32(255)
        return np.pad(coverage, (start, end))

    def _describe(self, i):
        """(noun, colour, background, caption) of example i.

        Each pass over the combinations shows every one, in the next wording.
        """
        if not 0 <= i < self._length:
            raise IndexError(f"example {i} of {self._length}")
        turn, place = divmod(int(i), len(self._combinations))
        rest, back = divmod(int(self._combinations[place]), len(self._back))
        noun, fore = divmod(rest, len(self._fore))
        noun, colour = self.nouns[noun], self._fore[fore]
        background = self._back[back]
        caption = TEMPLATES[(place + turn) % len(TEMPLATES)].format(
            noun=noun,
            colour=colour,
            background=background,
            a_colour=_with_article(colour),
            a_background=_with_article(background),
        )
        return noun, colour, background, caption

    def _place(self, i):
        """(side, top, left) in pixels of the glyph's square in example i."""
        free = self.image_size - self._pixels
        if not self.jitter:
            return self._pixels, free // 2, free // 2
        word = hashlib.blake2b(f"{self.seed},{i}".encode(), digest_size=12).digest()
        parts = (word[:4], word[4:8], word[8:])
        a, b, c = (int.from_bytes(part, "little") / 2**32 for part in parts)
        pixels = max(1, round(self._pixels * (1 - self.jitter * a)))
        free = self.image_size - pixels
        reach = min(free / 2, self.jitter * self.image_size / 2)
        shift = (round(free / 2 + (2 * u - 1) * reach) for u in (b, c))
        return pixels, *(min(max(s, 0), free) for s in shift)

    def _allowed(self):
        """int32 numbers of the split's combinations, shuffled by the seed."""
        words = [
            np.array([_word_hash(word) for word in part], np.uint64).reshape(shape)
            for part, shape in (
                (self.nouns, (-1, 1, 1)),
                (self._fore, (-1, 1)),
                (self._back, (-1,)),
            )
        ]
        held_out = order.make_key(*words) < np.uint64(int(HELD_OUT * 2**64))
        allowed = words[1] != words[2]  # a glyph must differ from its background
        if self.split == "train":
            allowed = allowed & ~held_out
        elif self.split == "validation":
            allowed = allowed & held_out
        shape = tuple(len(x) for x in (self.nouns, self._fore, self._back))
        numbers = np.flatnonzero(np.broadcast_to(allowed, shape)).astype(np.int32)
        if not len(numbers):
            return numbers
        places = np.arange(len(numbers))
        return numbers[order.permute(places, len(numbers), order.make_key(self.seed))]

    def _fingerprint(self):
        what = {
            "source": "icons",
            "split": self.split,
            "image_size": self.image_size,
            "glyphs": self._glyphs,
            "colours": [(name, COLOURS[name]) for name in self._fore],
            "backgrounds": [(name, COLOURS[name]) for name in self._back],
            "templates": TEMPLATES,
            "held_out": HELD_OUT,
            "seed": self.seed,
            "size": self.size,
            "jitter": self.jitter,
            "num_examples": self._length,
            "font": sha256_file(_font_file()),
        }
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def glyph_names() -> dict[str, str]:
    """{name: character} of all glyphs; hyphens are spaces: "account alert outline"."""
    from fonticon_mdi7 import MDI7

    # Attributes look like home = "mdi7.<character>"; import_ is the glyph "import".
    found = {
        name.strip("_").replace("_", " "): value[-1]
        for name, value in vars(MDI7).items()
        if not name.startswith("_") and isinstance(value, str)
    }
    return dict(sorted(found.items()))


def _font_file() -> str:
    from fonticon_mdi7 import MDI7

    return MDI7.__font_file__


@functools.lru_cache(maxsize=16)
def _font(pixels: int):
    return ImageFont.truetype(_font_file(), pixels)


@functools.lru_cache(maxsize=16384)
def _coverage(character: str, pixels: int) -> np.ndarray:
    """uint8 (pixels, pixels), 255 where the glyph covers the whole pixel.

    Drawn larger and averaged, so that no hinting bends it and all sizes agree.
    """
    factor = max(1, 512 // pixels)
    side = factor * pixels
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text(
        (side / 2, side / 2), character, fill=255, font=_font(side), anchor="mm"
    )
    parts = np.asarray(canvas, np.float32).reshape(pixels, factor, pixels, factor)
    coverage = np.rint(parts.mean(axis=(1, 3))).astype(np.uint8)
    coverage.setflags(write=False)  # shared by all callers
    return coverage


@functools.lru_cache(maxsize=1024)
def _blends(colour, background) -> np.ndarray:
    """uint8 (256, 3): the pixel for each coverage, background first."""
    share = np.arange(256)[:, None] / 255
    blend = share * np.array(colour) + (1 - share) * np.array(background)
    return np.rint(blend).astype(np.uint8)


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")


def _with_article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _near(word, known=None) -> str:
    known = [*DEFAULT_NOUNS, *glyph_names()] if known is None else known
    near = difflib.get_close_matches(str(word), known, n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _choose_nouns(nouns: Any) -> dict[str, str]:
    """{noun: character} from the option `nouns`."""
    names = glyph_names()
    if nouns == "full":
        return dict(names)
    if nouns == "default":
        nouns = DEFAULT_NOUNS
    elif type(nouns) is int:
        if not 1 <= nouns <= len(DEFAULT_NOUNS):
            raise UsageError(
                f"nouns={nouns}: expected 1 to {len(DEFAULT_NOUNS)}, or 'full' for all "
                f"{len(names)}"
            )
        nouns = DEFAULT_NOUNS[:nouns]
    elif isinstance(nouns, str) or not nouns:
        raise UsageError(
            f"nouns={nouns!r}: expected 'default', 'full', a number or a list of nouns"
        )
    chosen = {}
    for noun in nouns:
        name = GLYPHS.get(noun, noun)
        if name not in names or noun in chosen:
            problem = "is given twice" if noun in chosen else "has no glyph"
            raise UsageError(f"nouns: {noun!r} {problem}{_near(noun)}")
        chosen[noun] = names[name]
    return chosen


def _choose_colours(colours: Any, where: str) -> list[str]:
    """Names of colours from the option `colours` or `backgrounds`."""
    known = list(COLOURS)
    if colours == "all":
        return known
    if type(colours) is int:
        if not 1 <= colours <= len(known):
            raise UsageError(f"{where}={colours}: expected 1 to {len(known)}")
        return known[:colours]
    if isinstance(colours, str) or not colours:
        raise UsageError(
            f"{where}={colours!r}: expected 'all', a number or a list of colours"
        )
    for name in colours:
        if name not in COLOURS:
            raise UsageError(
                f"{where}: unknown colour {name!r}{_near(name, known)} "
                f"(known: {', '.join(known)})"
            )
    return list(dict.fromkeys(colours))
