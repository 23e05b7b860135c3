"""Icons: what is drawn is what the caption says; the split; a function of (seed, i)."""

import collections
import itertools

import numpy as np
import pytest

from unclip_jax.data.sources import icons, make_source
from unclip_jax.data.sources.icons import COLOURS, DEFAULT_NOUNS, TEMPLATES, Icons


def combinations(source):
    count = len(source) // len(TEMPLATES)
    return {source._describe(i)[:3] for i in range(count)}


def test_the_glyphs_are_there():
    assert len(icons.glyph_names()) == 7296
    assert 95 <= len(DEFAULT_NOUNS) == len(set(DEFAULT_NOUNS)) <= 120
    assert set(icons.GLYPHS) < set(DEFAULT_NOUNS)
    source = Icons(image_size=32)
    masks = np.stack([source.mask(noun) for noun in source.nouns])
    assert masks.min() == 0 and masks.max() == 1
    assert (masks.mean((1, 2)) > 0.08).all()  # solid enough to be seen
    assert (masks[:, [0, -1]] == 0).all() and (masks[:, :, [0, -1]] == 0).all()
    flat = masks.reshape(len(masks), -1)
    flat = flat - flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    alike = flat @ flat.T - 2 * np.eye(len(flat))
    assert alike.max() < 0.9, [DEFAULT_NOUNS[i] for i in divmod(alike.argmax(), 108)]
    # sorted from distinct to less so
    assert alike[:24, :24].max() <= alike[:48, :48].max() <= alike.max()


def test_colours_are_well_apart():
    assert len(COLOURS) == 12
    for a, b in itertools.combinations(COLOURS.values(), 2):
        assert np.linalg.norm(np.subtract(a, b)) >= 90


def test_the_picture_is_what_the_caption_says():
    source = Icons(nouns=12, colours=6, backgrounds=6)
    for i in range(0, len(source), 37):
        example = source[i]
        mask = source.mask(example["noun"])[..., None]
        fore = np.array(COLOURS[example["colour"]])
        back = np.array(COLOURS[example["background"]])
        image = example["image"]
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert image.flags.writeable
        drawn = mask * fore + (1 - mask) * back
        assert np.abs(drawn - image).max() <= 0.51
        words = example["caption"].replace(",", "").split(" ")
        for field in ("noun", "colour", "background"):
            assert example[field] in words
        assert example["colour"] != example["background"]
        assert words[words.index(example["noun"]) - 1] == example["colour"]
        assert "a orange" not in example["caption"]


def test_sizes_agree_and_edges_are_smooth():
    small, large = Icons(image_size=32), Icons(image_size=64)
    for noun in ("umbrella", "cat", "key"):
        fine = large.mask(noun)
        coarse = fine.reshape(32, 2, 32, 2).mean((1, 3))
        assert np.abs(coarse - small.mask(noun)).mean() < 0.03
        assert ((fine > 0) & (fine < 1)).any()


def test_the_split_holds_combinations_out():
    options = dict(nouns=24, colours=8, backgrounds=8)
    train, held_out, everything = (
        combinations(Icons(split=split, **options))
        for split in ("train", "validation", "all")
    )
    assert not train & held_out
    assert train | held_out == everything and len(everything) == 24 * 8 * 7
    assert 0.11 < len(held_out) / len(everything) < 0.19
    for field in range(3):  # every word is seen in training
        assert {c[field] for c in train} == {c[field] for c in everything}
    pairs = [(0, 1), (0, 2), (1, 2)]
    for a, b in pairs:  # and every pair of words
        assert {(c[a], c[b]) for c in train} == {(c[a], c[b]) for c in everything}


def test_the_split_does_not_depend_on_the_vocabulary_or_the_seed():
    few = combinations(Icons(split="validation", nouns=["key", "fish"], colours=3))
    many = combinations(Icons(split="validation", nouns=48, seed=5))
    assert few == {
        c for c in many if c[0] in ("key", "fish") and c[1] in list(COLOURS)[:3]
    }
    alias = Icons(split="held_out", nouns=48, seed=5)
    assert alias.fingerprint == Icons(split="validation", nouns=48, seed=5).fingerprint


def test_combinations_and_wordings_come_evenly():
    source = Icons(nouns=5, colours=4, backgrounds=4)
    count = len(source._combinations)
    assert len(source) == count * len(TEMPLATES)
    for turn in range(3):
        part = [source._describe(turn * count + i)[:3] for i in range(count)]
        assert len(set(part)) == count
    captions = source.captions()
    assert len(set(captions)) == len(captions) == len(source)
    assert captions[7] == source[7]["caption"]
    starts = collections.Counter(len(c.split()) for c in source.captions(64))
    assert len(starts) >= 4  # varied wording from the start
    assert max(len(c.replace(",", " ,").split()) for c in Icons().captions(5000)) <= 12


def test_an_example_is_a_function_of_seed_and_index():
    options = dict(nouns=10, jitter=0.3)
    a, b, other = Icons(**options), Icons(**options), Icons(seed=1, **options)
    for i in (0, 5, 999):
        assert (
            np.array_equal(a[i]["image"], b[i]["image"]) and a[i]["key"] == b[i]["key"]
        )
    assert a.fingerprint == b.fingerprint
    assert any(a[i]["caption"] != other[i]["caption"] for i in range(5))
    changed = [dict(size=0.8), dict(jitter=0.1), dict(image_size=16), dict(nouns=9)]
    changed += [dict(colours=3), dict(backgrounds=3), dict(split="all"), dict(seed=2)]
    prints = {Icons(**{**options, **change}).fingerprint for change in changed}
    assert len(prints | {a.fingerprint}) == len(changed) + 1


def test_jitter_moves_and_scales_but_keeps_the_glyph_inside():
    source = Icons(nouns=["heart"], jitter=0.4, size=0.95, num_examples=300)
    sizes, centres = set(), set()
    for i in range(300):
        example = source[i]
        seen = (example["image"] != example["image"][0, 0]).any(-1)
        assert not seen[:, 0].any() or source._place(i)[2] == 0
        rows, columns = np.nonzero(seen)
        sizes.add(columns.max() - columns.min())
        centres.add((rows.mean().round(), columns.mean().round()))
        pixels, top, left = source._place(i)
        assert min(top, left) >= 0 and max(top, left) + pixels <= 32
    assert len(sizes) >= 6 and len(centres) >= 15
    still = {Icons(size=0.95)._place(i) for i in range(20)}
    assert len(still) == 1


def test_the_full_vocabulary():
    source = Icons(nouns="full", colours=2, backgrounds=2, num_examples=50)
    assert len(source.nouns) == 7296 and "account alert outline" in source.nouns
    assert "import" in source.nouns
    assert all("_" not in noun for noun in source.nouns)
    assert source[49]["image"].std() > 0


def test_length_and_bounds():
    source = Icons(nouns=2, num_examples=10)
    assert len(source) == len(list(source)) == 10
    with pytest.raises(IndexError):
        source[10]
    with pytest.raises(IndexError):
        source[-1]
    longer = Icons(nouns=2, num_examples=100_000)
    assert longer[99_999]["caption"]


def test_make_source():
    source = make_source(
        {"source": "icons", "nouns": ["heart", "key"], "feed": "tf", "tokenizer": ""}
    )
    assert source.nouns == ["heart", "key"]
    with pytest.raises(ValueError, match="did you mean 'image_size'"):
        make_source({"source": "icons", "image_sise": 32})
    with pytest.raises(ValueError, match="expected one of .*icons"):
        make_source({"source": "icon"})


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(split="test"), "expected one of train"),
        (dict(nouns=["umbrela"]), "did you mean 'umbrella'"),
        (dict(nouns=["key", "key"]), "twice"),
        (dict(nouns=1000), "expected 1 to"),
        (dict(nouns=[]), "expected 'default'"),
        (dict(nouns="ful"), "expected 'default'"),
        (dict(colours=["rad"]), "did you mean 'red'"),
        (dict(colours=13), "expected 1 to 12"),
        (dict(backgrounds="red"), "a list of colours"),
        (dict(colours=["red"], backgrounds=["red"]), "no combination"),
        (dict(image_size=4), "image_size"),
        (dict(size=2.0), "size"),
        (dict(jitter=1.0), "jitter"),
        (dict(num_examples=0), "num_examples"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Icons(**options)
    with pytest.raises(ValueError, match="not a noun"):
        Icons(nouns=2).mask("tree")
