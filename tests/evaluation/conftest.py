"""A tiny source of icons and a model that draws them, right or wrong on purpose."""

import dataclasses
import zlib

import ml_collections
import numpy as np
import pytest

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
NOUNS = [f"thing{i}" for i in range(12)]


class Source:
    """12 random blobs in 5 colours on another: the interface of the icons source."""

    fingerprint = "source-of-blobs"
    nouns = NOUNS
    colours = COLOURS

    def __init__(self, length=200, size=16):
        self.length, self.size = length, size

    def __len__(self):
        return self.length

    def mask(self, noun):
        seed = zlib.crc32(noun.encode())
        mask = np.zeros((self.size, self.size), np.float32)
        inner = np.random.default_rng(seed).random((6, 6)) < 0.5
        block = np.kron(inner, np.ones((2, 2)))
        mask[2:14, 2:14] = block
        return mask

    def draw(self, noun, colour, background):
        mask = self.mask(noun)[..., None]
        fore, back = np.array(COLOURS[colour]), np.array(COLOURS[background])
        return np.round(fore * mask + back * (1 - mask)).astype(np.uint8)

    def captions(self, n):
        return [self[i]["caption"] for i in range(n)]

    def __getitem__(self, i):
        random = np.random.default_rng((7, i))
        colour, background = random.choice(list(COLOURS), 2, replace=False)
        noun = NOUNS[random.integers(len(NOUNS))]
        return {
            "key": f"{i:06d}",
            "image": self.draw(noun, colour, background),
            "caption": f"a {colour} {noun} on a {background} background",
            "noun": noun,
            "colour": str(colour),
            "background": str(background),
        }


class Model:
    """Draws the caption; every third picture gets another noun.  Counts its calls."""

    def __init__(self, source, die_after=None):
        self.source, self.die_after, self.calls = source, die_after, []
        self.image_size = source.size

    def fit_for_clip(self, images):
        return images

    def settings(self, **options):
        return {"decoder": {"guidance": options.get("decoder_guidance", 1.0)}}

    def text2image(self, prompts, seed=0, first=0, progress=None, **options):
        if self.die_after is not None and len(self.calls) >= self.die_after:
            raise KeyboardInterrupt
        self.calls.append((first, len(prompts), seed, options))
        out = []
        for i, prompt in enumerate(prompts, start=first):
            _, colour, noun, _, _, background, _ = prompt.split()
            if i % 3 == 0:
                noun = NOUNS[(NOUNS.index(noun) + 1) % len(NOUNS)]
            out.append(self.source.draw(noun, colour, background))
        return np.stack(out)

    def encode_image(self, images, progress=None):
        back = images[:, 0, 0].astype(np.float32)
        blocks = images.reshape(len(images), 8, 2, 8, 2, 3).mean((2, 4, 5))
        return np.concatenate([back, blocks.reshape(len(images), -1)], axis=1) / 255

    def encode_text(self, prompts, progress=None):
        out = []
        for prompt in prompts:
            _, colour, noun, _, _, background, _ = prompt.split()
            out.append(self.source.draw(noun, colour, background))
        return self.encode_image(np.stack(out))


@pytest.fixture
def source(monkeypatch):
    """The blobs, also what any config.data gives in the runner."""
    from unclip_jax.evaluation import inputs

    blobs = Source()
    monkeypatch.setattr(inputs, "make_source", lambda data: blobs)
    return blobs


@pytest.fixture
def make_model(source):
    """make_model(die_after=None) -> a model whose text2image can be interrupted."""
    return lambda die_after=None: Model(source, die_after)


class Inception:
    """Stands for InceptionExtractor: two layers, linear in the pixels."""

    default, label = "2048", "a stand-in"

    def __init__(self, layers):
        self.about = {"network": "stand-in", "convention": "none"}
        self.calls = []

    def image(self, images):
        self.calls.append(len(images))
        x = images.reshape(len(images), -1) / 255.0
        random = np.random.default_rng(0)
        names = {"2048": 8, "logits_unbiased": 12}
        return {k: x @ random.normal(size=(x.shape[1], w)) for k, w in names.items()}


@pytest.fixture
def inception(monkeypatch):
    """The list of stand-ins that config.extractors of that kind have made."""
    from unclip_jax.evaluation import features

    made = []

    @dataclasses.dataclass(frozen=True)
    class Options(features.ExtractorOptions):
        convention: str = "none"

        def load(self, layers):
            made.append(Inception(layers))
            return made[-1]

    monkeypatch.setitem(features.kinds(), "inception", Options)
    return made


@pytest.fixture
def config():
    """configs/icons/eval.py, small."""
    import pathlib

    from unclip_jax.config import load

    root = pathlib.Path(__file__).parents[2]
    c = ml_collections.ConfigDict(load(str(root / "configs/icons/eval.py")))
    with c.unlocked():
        c.count = 60
        c.generation.batch_size = 16
        c.reference.count = 50
        c.metrics.r_precision.pool = 20
        c.report = {"pictures": 8}
    return c
