"""Which caption an image made elsewhere belongs to: by its prompt, or by its name."""

import concurrent.futures
import pathlib
import re
from collections.abc import Sequence

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.image_sets import FolderImages, Images
from unclip_jax.images import read_metadata

_NUMBERED = re.compile(r"(\D*)(\d+)(\D*)")


def pair(images: Images, keys: Sequence[str]) -> str:
    """Brings the images of a folder into the order of captions, and says how.

    Names that are the examples' keys decide. So do names that differ in one number
    which counts from 0 or 1. Other names are taken in their order, numbers by value.

    Args:
      images: N images; those of a folder are reordered.
      keys: N or more keys of examples, in the order of the captions.

    Returns:
      What pairs image and caption, for the report.

    Raises:
      UsageError: numbers that count the images, but leave some out.
    """
    if not isinstance(images, FolderImages):
        return "image i of the file with caption i"
    stems = [path.stem for path in images.paths]
    places = {key: place for place, key in enumerate(keys)}
    if len(places) == len(keys) and set(stems) == set(keys[: len(stems)]):
        images.reorder(sorted(range(len(stems)), key=lambda i: places[stems[i]]))
        return "by name: each is the key of an example"
    if (numbers := _counted(stems)) is None:
        return "image i with caption i, in the order of the names"
    first, last, count = min(numbers), max(numbers), len(numbers)
    if numbers == list(range(first, first + count)) and first in (0, 1):
        return f"by number: {stems[0]} with the first caption, to {stems[-1]}"
    if last > 2 * count:  # most numbers are not there: ids
        return "image i with caption i, in the order of the numbers in the names"
    expected = range(0 if first == 0 else 1, last + 1)
    absent = [n for n in expected if n not in set(numbers)]
    problem = f"number {absent[0]} is not there" if absent else "some are there twice"
    raise UsageError(
        f"{images.paths[0].parent}: the images are numbered {first} to {last}, but "
        f"{problem}, so that those behind it would get another's caption: number the "
        "images from 0 without gaps, in the order of the captions"
    )


def pair_by_prompt(images: Images, captions: Sequence[str]) -> str | None:
    """Brings images that hold the captions they were drawn from into their order.

    `sample` and `evaluate` write them into each image.

    Args:
      images: N images; those of a folder are reordered.
      captions: N captions.

    Returns:
      What pairs image and caption, for the report; None where an image holds no
      prompt, or none holds one of the captions.

    Raises:
      UsageError: some prompts are captions and others are not.
    """
    if not isinstance(images, FolderImages):
        return None
    with concurrent.futures.ThreadPoolExecutor() as pool:
        prompts = [*pool.map(read_prompt, images.paths)]
    places: dict[str, list[int]] = {}
    for place, caption in enumerate(captions):
        places.setdefault(_normalized(caption), []).append(place)
    if not all(prompts) or places.keys().isdisjoint(map(_normalized, prompts)):
        return None
    order = [0] * len(captions)
    for i, prompt in enumerate(prompts):
        if not (left := places.get(_normalized(prompt))):
            raise UsageError(
                f"{images.paths[i]} was drawn from {prompt!r}, which "
                f"{'is no caption' if left is None else 'fewer captions say'} of the "
                f"{len(captions)} that config.data, count, select and seed choose: "
                "choose those that the images were drawn from"
            )
        order[left.pop(0)] = i
    images.reorder(order)
    return "by the prompts that the images hold"


def read_prompt(path: pathlib.Path) -> str:
    """The caption in an image that unclip_jax wrote; "" of any other."""
    try:
        return read_metadata(path).get("prompt", "").strip()
    except (OSError, ValueError, AttributeError):  # another program's
        return ""


def _normalized(caption):
    return " ".join(caption.split())


def _counted(stems):
    """The numbers of names that differ in one number alone, else None."""
    matches = [match for stem in stems if (match := _NUMBERED.fullmatch(stem))]
    if len(matches) < len(stems) or len({m.group(1, 3) for m in matches}) > 1:
        return None
    return [int(match[2]) for match in matches]
