"""Studies: which images raters compare, in which order, and the pages that ask.

In the folder of a study appear

  pages/QUESTION_01.html ...   self-contained pages for raters, with 50 comparisons each
  key.json                     which image is which model's: not for raters
  preferences.json             what the answers say, see answers.py
"""

import base64
import dataclasses
import functools
import importlib.resources
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from unclip_jax import files
from unclip_jax.config import check_keys
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.pairing import read_prompt
from unclip_jax.files import atomic_write, read_utf8, split_lines
from unclip_jax.images import find_images, read_image

FORMAT = "unclip_jax comparison"
PAGE_BYTES = 32 * 2**20  # a page ends early rather than grow beyond what phones open
CELL = 256  # pixels of an image in a grid, at most
GAP = 6


@dataclasses.dataclass(frozen=True)
class Question:
    """What raters are asked about two images, or two grids of them.

    Attributes:
      text: the question.
      caption: whether they see the caption.
      grid: whether they compare grids of samples.
    """

    text: str
    caption: bool = False
    grid: bool = False


# unCLIP, section 5: two images, two images and their caption, two grids of samples.
QUESTIONS = {
    "photorealism": Question("Which image looks more photorealistic?"),
    "caption": Question("Which image better matches the caption?", caption=True),
    "diversity": Question(
        "Which group of images is more diverse?", caption=True, grid=True
    ),
}


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """How a study is made.

    Attributes:
      questions: names in QUESTIONS.
      count: comparisons per question, drawn at random; None takes the paper's 1000,
        or all if there are fewer.
      grid: images per side of a grid (the paper's are 4 x 4).
      page: comparisons per page.
      seed: of the draw, the order, and which side is whose.
    """

    questions: tuple[str, ...] = ("photorealism", "caption")
    count: int | None = None
    grid: int = 4
    page: int = 50
    seed: int = 0

    def __post_init__(self):
        for question in self.questions:
            check_keys({question: None}, QUESTIONS, "--question")
        for name in ("count", "grid", "page"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise UsageError(f"--seed must be at least 0, got {self.seed}")


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same caption's images of both models: one each, or those of two grids."""

    a: tuple[pathlib.Path, ...]
    b: tuple[pathlib.Path, ...]
    caption: str  # "" where nothing says it


def make_study(
    folder: str | pathlib.Path,
    a: str | pathlib.Path,
    b: str | pathlib.Path,
    captions: str | pathlib.Path = "",
    options: StudyOptions = StudyOptions(),
    log: Callable[[str], None] = print,
) -> dict:
    """Writes the pages and the key of a study of two folders of images.

    Args:
      folder: of the study; it must not hold one yet.
      a, b: folders written by unclip_jax.sample, or any others: their images are
        paired by name, or by the last number in their names.
      captions: text file whose line i is the caption of the i-th pair, where the
        images do not hold theirs.
      options: see StudyOptions.
      log: called with each line of text for the user.

    Returns:
      What key.json holds.

    Raises:
      UsageError: images without partner or of different captions, a question that
        needs captions where there are none, fewer pairs than options.count.
      FileNotFoundError: a folder or file that is not there.
    """
    folder = pathlib.Path(folder)
    if (folder / "key.json").exists():
        raise UsageError(
            f"{folder} holds a study already: raters may have its pages; choose "
            "another --study, or remove it"
        )
    matched = match_images(a, b)
    lines = [""] * len(matched)
    if captions:
        lines = _caption_lines(captions, len(matched))
    asked = {}  # question -> its pairs
    for name in options.questions:
        asked[name] = _choose(name, matched, lines, options)
    shown = [path for pair in matched for path in pair]
    stats = [
        [str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in shown
    ]
    study = files.sha256_json([stats, dataclasses.asdict(options)])[:8]
    key = {
        "format": FORMAT,
        "version": 1,
        "study": study,
        "a": str(a),
        "b": str(b),
        "seed": options.seed,
        "pairs": {},
    }
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    for page in (folder / "pages").glob("*_[0-9]*.html"):
        page.unlink()  # without a key they are of a study that was not finished
    for number, (name, chosen) in enumerate(asked.items()):
        random = np.random.default_rng((options.seed, number))
        order = random.permutation(len(chosen))
        # as often left as right, whichever the model
        flipped = random.permutation(np.arange(len(chosen)) % 2).astype(bool)
        items = []
        for i, (row, flip) in enumerate(zip(order, flipped, strict=True), start=1):
            pair, identity = chosen[row], f"{study}-{name}-{i:04d}"
            items.append((identity, pair, bool(flip)))
            key["pairs"][identity] = {
                "question": name,
                "first": "b" if flip else "a",
                "caption": pair.caption,
                "a": [path.name for path in pair.a],
                "b": [path.name for path in pair.b],
            }
        pages = _write_pages(folder / "pages", study, name, items, options)
        log(f"{name}: {len(items)} comparisons, {pages} page(s) in {folder}/pages")
    atomic_write(folder / "key.json", json.dumps(key, indent=1) + "\n")
    log(f"which image is whose: {folder}/key.json (not for raters)")
    return key


def match_images(a, b) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Every image of folder `a` with its partner in folder `b`, in order of names.

    Partners have the same name (whatever the suffix), or else the same last number.

    Raises:
      UsageError: images without partner, or one folder twice.
      FileNotFoundError: a folder that is not there, or has no images.
    """
    for name, folder in (("a", a), ("b", b)):
        if not pathlib.Path(folder).is_dir():
            raise FileNotFoundError(f"--{name} {str(folder)!r} is not a folder")
    if os.path.samefile(a, b):
        raise UsageError(f"--a and --b are the same folder, {str(a)!r}: give two")
    first, second = find_images([a]), find_images([b])
    for name in (lambda path: path.stem, _number):
        left, right = ({name(p): p for p in paths} for paths in (first, second))
        unique = len(left) == len(first) and len(right) == len(second)
        if unique and None not in left and left.keys() == right.keys():
            return [(path, right[key]) for key, path in left.items()]
    stems = [{p.stem for p in paths} for paths in (first, second)]
    alone = sorted(stems[0] ^ stems[1])[:4] or sorted(p.name for p in first)[:4]
    raise UsageError(
        f"the {len(first)} images of {a} and the {len(second)} of {b} do not pair by "
        f"name nor by number: {', '.join(alone)} have no partner, or more than one"
    )


def _number(path):
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else None


def _with_caption(images, line) -> Pair:
    """A pair with the caption that its images hold, or `line`; they must agree."""
    texts = {"--captions": line} | {str(path): read_prompt(path) for path in images}
    texts = {where: text for where, text in texts.items() if text}
    if len(set(texts.values())) > 1:
        listed = "; ".join(f"{where}: {text!r}" for where, text in texts.items())
        raise UsageError(f"one pair, but different captions ({listed})")
    return Pair(images[:1], images[1:], next(iter(texts.values()), ""))


def _caption_lines(file, count):
    path = pathlib.Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"--captions {str(file)!r} does not exist")
    lines = split_lines(read_utf8(path))
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) != count:
        raise UsageError(
            f"--captions {str(file)!r} has {len(lines)} lines that are not blank for "
            f"{count} pairs of images"
        )
    return lines


def _choose(name, matched, lines, options) -> list[Pair]:
    """The pairs of a question, drawn by the seed, in order of names."""
    question, pairs = QUESTIONS[name], matched
    if question.grid:  # which needs all captions
        pairs = _grids(list(map(_with_caption, matched, lines)), options.grid)
    count = min(1000, len(pairs)) if options.count is None else options.count
    if count > len(pairs):
        raise UsageError(
            f"--count={count}, but for {name} there are only {len(pairs)} pairs"
        )
    random = np.random.default_rng((options.seed, len(pairs)))
    rows = np.sort(random.choice(len(pairs), count, replace=False))
    chosen = [
        pairs[i] if question.grid else _with_caption(matched[i], lines[i]) for i in rows
    ]
    if question.caption and (bare := [p for p in chosen if not p.caption]):
        raise UsageError(
            f"--question={name} needs captions, but nothing says that of "
            f"{bare[0].a[0]}: give --captions=FILE"
        )
    return chosen


def _grids(pairs, side) -> list[Pair]:
    """One pair of grids for every caption with side * side images of each model."""
    by_caption: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_caption.setdefault(pair.caption, []).append(pair)
    size = side * side
    grids = [
        Pair(
            tuple(p.a[0] for p in same[:size]),
            tuple(p.b[0] for p in same[:size]),
            caption,
        )
        for caption, same in by_caption.items()
        if len(same) >= size
    ]
    if not grids:
        most = max(map(len, by_caption.values()))
        raise UsageError(
            f"--question=diversity compares grids of {size} samples of one caption, "
            f"but no caption has more than {most}: draw them with --samples={size}"
        )
    return grids


def _write_pages(folder, study, name, items, options) -> int:
    """Writes the pages of one question; returns how many."""
    number = 0
    for number, page in enumerate(_paginate(items, options), start=1):
        question = QUESTIONS[name]
        data = {
            "study": study,
            "page": f"{name}_{number:02d}",
            "question": question.text,
            "grid": question.grid,
            "pairs": page,
        }
        # "<" would end the script that holds the data
        text = json.dumps(data).replace("<", "\\u003c")
        html = _template().replace("{{DATA}}", text)
        atomic_write(folder / f"{name}_{number:02d}.html", html)
    return number


def _paginate(items, options) -> Iterator[list[dict]]:
    """The comparisons of one page after the other; no more than one in memory."""
    page, size = [], 0
    for identity, pair, flip in items:
        sides = (pair.b, pair.a) if flip else (pair.a, pair.b)
        images = [_encode(_grid(side) if len(side) > 1 else side[0]) for side in sides]
        if page and (len(page) == options.page or size > PAGE_BYTES):
            yield page
            page, size = [], 0
        question = QUESTIONS[identity.split("-")[1]]
        caption = pair.caption if question.caption else ""
        page.append({"id": identity, "caption": caption, "images": images})
        size += sum(map(len, images))
    if page:
        yield page


def _grid(paths: Sequence[pathlib.Path]) -> np.ndarray:
    """The images in a square, each of CELL pixels at most: uint8 (H, W, 3)."""
    side = round(len(paths) ** 0.5)
    first = read_image(paths[0])
    size = min(CELL, min(first.shape[:2]))
    cells = np.stack([read_image(path, size) for path in paths])
    cells = cells.reshape(side, side, size, size, 3)
    step = size + GAP
    out = np.full((side * step - GAP, side * step - GAP, 3), 255, np.uint8)
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            out[y * step : y * step + size, x * step : x * step + size] = cell
    return out


def _encode(image) -> str:
    """A data URI of the pixels alone: names and metadata would tell the model."""
    pixels = image if isinstance(image, np.ndarray) else read_image(image)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@functools.cache
def _template() -> str:
    return (
        importlib.resources.files("unclip_jax.evaluation.human")
        .joinpath("page.html")
        .read_text("utf-8")
    )
