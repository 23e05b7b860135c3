"""Mutated files at every border of the package, opened as a user would.

A border is a module with

    make(folder)        writes small valid files
    open_it(folder)     uses them as a command would; returns something to compare
    repair(folder, rng) where there is one, makes other files fit the mutated one
    NAMES               where there are any, other words with which a message says where

A run makes one mutation of one file and opens it. The outcome is "same" (as without the
mutation), "other" (a mutation may be another valid input) or "refused", by one sentence
that names the file or the folder. Anything else is a fault: another kind of error, a
sentence that does not say where, or more than SECONDS.

    python -m tests.fuzz --mutations=20000
"""

import contextlib
import importlib
import json
import pathlib
import random
import signal
import tarfile
import warnings

import numpy as np

# How many mutations of each border `make test` tries.
IN_TESTS = {
    "clips": 60,
    "configs": 150,
    "exports": 40,
    "images": 350,
    "prompts": 150,
    "records": 150,
    "tables": 150,
    "tars": 150,
}
BORDERS = tuple(IN_TESTS)
SECONDS = 20
# What a user meets as one line; UsageError is a ValueError.
REFUSALS = (ValueError, OSError)
JSON_VALUES = (None, True, False, 0, -1, 1e308, 2**70, "", "x", "\ud83d", [], {}, [[]])


ARCHIVE = pathlib.Path(__file__).parents[1] / "data" / "older" / "version_0_1.tgz"


def extract(name: str, folder: pathlib.Path) -> None:
    """Writes the files of runs/old/NAME of the archive (test_older_files.py)."""
    prefix = f"./runs/old/{name}/"
    with tarfile.open(ARCHIVE) as archive:
        for member in archive.getmembers():
            if member.isfile() and member.name.startswith(prefix):
                file = folder / member.name.removeprefix(prefix)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.extractfile(member).read())


class FaultError(AssertionError):
    """A mutation that the package does not stand."""


@contextlib.contextmanager
def _limit(seconds):
    def late(*_):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Border:
    """One border with its valid files in `folder`, which every run leaves as they were.

    Attributes:
      files: {path: content} of what the border's `make` wrote.
    """

    def __init__(self, name: str, folder: pathlib.Path):
        self.module = importlib.import_module(f"{__name__}.{name}")
        self.name, self.folder = name, folder
        folder.mkdir(parents=True)
        self.module.make(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {path: path.read_bytes() for path in paths}
        self._expected = self.module.open_it(folder)

    def run(self, seed: int) -> str:
        """Makes mutation number `seed` of a file and opens it: the outcome.

        Raises FaultError with the seed and what happened.
        """
        rng = random.Random(f"{self.name}{seed}")
        file = rng.choice(list(self.files))
        what, data = mutate(rng, file, self.files[file])
        where = f"{self.name} {seed}: {what} in {file.name}"
        try:
            file.unlink() if data is None else file.write_bytes(data)
            if hasattr(self.module, "repair"):
                self.module.repair(self.folder, rng)
            with _limit(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = self.module.open_it(self.folder)
        except REFUSALS as error:
            return self._refused(error, where)
        except Exception as error:
            raise FaultError(f"{where}: {type(error).__name__}: {error}") from error
        finally:
            self._put_back()
        return "same" if same(result, self._expected) else "other"

    def _put_back(self) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self.files:
                path.unlink()
        for path, content in self.files.items():
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)

    def _refused(self, error, where) -> str:
        text = str(error)
        if isinstance(error, TimeoutError) and text.startswith("not done"):
            raise FaultError(f"{where}: {text}") from error
        names = {self.folder.name, *(path.name for path in self.files)}
        names.update(getattr(self.module, "NAMES", ()))
        if not any(name in text for name in names):
            kind = type(error).__name__
            raise FaultError(f"{where}: {kind} names no file: {text!r}") from error
        return "refused"


def mutate(rng: random.Random, file: pathlib.Path, data: bytes):
    """(what was done, the new content, or None for a file that is gone)."""
    kinds = ["flip", "cut", "zeros", "repeat", "empty", "gone"]
    if file.suffix in (".json", ".jsonl") and data:
        kinds += ["json"] * 12
    kind = rng.choice(kinds)
    if kind == "gone":
        return kind, None
    if kind == "empty" or not data:
        return "empty", b""
    changed, at = bytearray(data), rng.randrange(len(data))
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 1, 8])):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "zeros":
        changed[at : at + 64] = bytes(len(changed[at : at + 64]))
    elif kind == "repeat":
        changed[at:at] = changed[at : at + rng.choice([1, 100, 10_000])]
    else:
        try:
            return mutate_json(rng, json.loads(data))
        except ValueError:
            return "flip", bytes(changed)
    return kind, bytes(changed)


def mutate_json(rng: random.Random, value):
    """(what was done, the bytes): one value somewhere in a document is another one."""
    places = list(_places(value))
    if not places or rng.random() < 0.05:
        deep = rng.choice(["[" * 100_000, json.dumps(rng.choice(JSON_VALUES)), "NaN"])
        return "another document", deep.encode()
    parent, key = rng.choice(places)
    how = rng.choice(["replace", "replace", "remove", "rename"])
    if how == "remove":
        del parent[key]
    elif how == "rename" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    else:
        parent[key] = rng.choice(JSON_VALUES)
    return f"{how} {key!r}", json.dumps(value).encode()


def _places(value):
    items = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))[:20]
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def same(a, b) -> bool:
    """Whether two things that borders return are equal."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and a == b
