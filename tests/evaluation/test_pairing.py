"""Whose caption an image of a folder has."""

import numpy as np
import pytest
from PIL import Image

from unclip_jax.evaluation.image_sets import open_images
from unclip_jax.evaluation.inputs import Examples, read_keys
from unclip_jax.evaluation.pairing import pair, pair_by_prompt
from unclip_jax.images import find_images, save_image


def paired(folder, names, keys=None):
    """Number -> the image's color; what `pair` says. Images are written backwards."""
    folder.mkdir()
    for i, name in reversed([*enumerate(names)]):
        color = (10 * i, 0, 0)
        Image.new("RGB", (4, 4), color).save(folder / f"{name}.png")
    images = open_images(folder)
    says = pair(images, keys or [f"key{i}" for i in range(len(names))])
    return [int(image[0, 0, 0]) // 10 for image in images[:]], says


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("form", ["{}", "{:03d}", "image_{}", "{} drawn"])
def test_numbers_count(tmp_path, form, first):
    names = [form.format(i + first) for i in range(12)]
    order, says = paired(tmp_path / "x", names)
    assert order == [*range(12)]
    assert says == f"by number: {names[0]} with the first caption, to {names[-1]}"


def test_keys_decide_whatever_their_order(tmp_path):
    names = ["dog", "cat", "ant", "10", "9"]
    order, says = paired(tmp_path / "x", names, names)
    assert order == [*range(5)] and says.startswith("by name: each is the key")


def test_other_names_are_taken_in_their_order(tmp_path):
    order, says = paired(tmp_path / "x", ["cat", "ant", "b10", "b9"])
    assert order == [1, 3, 2, 0] and says.endswith("in the order of the names")


def test_large_numbers_are_ids(tmp_path):
    order, says = paired(tmp_path / "x", ["000139", "000285", "000632", "1000000"])
    assert order == [*range(4)] and says.endswith("order of the numbers in the names")


@pytest.mark.parametrize(
    "numbers,problem",
    [
        ([0, 1, 3, 4], "numbered 0 to 4, but number 2 is not there"),
        ([2, 3, 4, 5], "numbered 2 to 5, but number 1 is not there"),
        ([1, "01", 2, 3], "numbered 1 to 3, but some are there twice"),
    ],
)
def test_a_gap_is_refused(tmp_path, numbers, problem):
    with pytest.raises(ValueError, match=problem):
        paired(tmp_path / "x", numbers)


def test_images_in_memory_have_their_captions_in_order(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4, 3), np.uint8))
    says = pair(open_images(tmp_path / "x.npz"), ["a", "b", "c"])
    assert says == "image i of the file with caption i"


def test_a_folder_is_read_as_people_count(tmp_path):
    for name in ("10", "9", "a", "B2", "B10"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    order = [path.stem for path in find_images([tmp_path])]
    assert order == ["9", "10", "B2", "B10", "a"]


CAPTIONS = [f"a {noun}" for noun in ("cat", "dog", "ant", "cat", "bee")]


def drawn(folder, prompts, name="{:02d}.png"):
    for i, prompt in enumerate(prompts):
        about = {"prompt": prompt} if prompt else {}
        save_image(folder / name.format(i), np.full((2, 2, 3), i, np.uint8), about)
    return open_images(folder)


@pytest.mark.parametrize("name", ["{:02d}.png", "x{}.webp"])
def test_prompts_in_images_decide_whatever_the_names(tmp_path, name):
    images = drawn(tmp_path, CAPTIONS[::-1], name)
    before = images.fingerprint
    assert pair_by_prompt(images, CAPTIONS) == "by the prompts that the images hold"
    # the same caption twice: in the order of the names
    assert images[:][:, 0, 0, 0].tolist() == [1, 3, 2, 4, 0]
    assert images.fingerprint != before


def test_prompts_that_are_no_captions_decide_nothing(tmp_path):
    images = drawn(tmp_path / "a", ["1.png", "2.png"])
    assert pair_by_prompt(images, CAPTIONS[:2]) is None
    images = drawn(tmp_path / "b", ["a cat", ""])
    assert pair_by_prompt(images, CAPTIONS[:2]) is None
    assert images[:][:, 0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    "last,problem", [("a fox", "'a fox', which is no"), ("a bee", "'a bee', which few")]
)
def test_a_prompt_that_is_no_caption_is_named(tmp_path, last, problem):
    images = drawn(tmp_path, ["a cat", "a cat", "a bee", "a dog", last])
    with pytest.raises(ValueError, match=f"04.png was drawn from {problem}"):
        pair_by_prompt(images, CAPTIONS)


def test_keys_are_the_sources_own(tmp_path):
    from unclip_jax.data.sources import make_source

    for name in ("ant", "cat", "dog"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {name}")
    options = {"source": "folder", "path": str(tmp_path), "image_size": 4}
    examples = Examples(make_source(options), np.array([2, 0]), [], None)
    assert read_keys(examples) == ["dog", "ant"]
