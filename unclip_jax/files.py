"""Files that are whole or absent, and sha256 of what is in them.

A file is written under a temporary name beside its own, flushed to the disk and then
renamed: no reader, and no crash, sees half of it. Objects of a bucket (gs://) appear
whole anyway and are written as they are.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import pathlib
import stat
import tempfile
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Callable, Generator
from typing import IO, Any

import numpy as np
from etils import epath

from unclip_jax.errors import UsageError

# What numpy raises for a damaged .npy or .npz.
NUMPY_DAMAGE = (OSError, ValueError, EOFError, NotImplementedError, RuntimeError)
NUMPY_DAMAGE += (zipfile.BadZipFile, zlib.error, tokenize.TokenError)
# The end of a temporary file's name, which begins with a dot.
PARTIAL = ".partial"

logger = logging.getLogger(__name__)


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is not on a disk: objects there are whole, and never appended."""
    return "://" in str(path)


def atomic_write(
    path: str | os.PathLike, content: str | bytes | Callable[[IO[bytes]], Any]
) -> None:
    """Writes a file so that it is whole or absent.

    Args:
      path: on a disk or gs://; its folder exists.
      content: text (as UTF-8), bytes, or a function that writes to a binary file.
    """
    if isinstance(content, str):
        content = content.encode()
    if is_bucket(path):
        epath.Path(path).write_bytes(_to_bytes(content))
        return
    with atomic_path(path) as partial, open(partial, "wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content)


def read_utf8(path: str | os.PathLike) -> str:
    """Reads a text, its ends of lines as they are, without a byte order mark.

    Raises UsageError, naming the file, if it is of another encoding.
    """
    try:
        return pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path} is not UTF-8 in line {line}, save it as that: {error}"
        ) from None


def split_lines(text: str) -> list[str]:
    """Returns the lines of a text that end in \\n, \\r\\n or \\r.

    str.splitlines splits at U+2028, form feeds and more, which captions may hold.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def list_files(
    root: str | os.PathLike, suffixes: tuple[str, ...], recursive: bool = True
) -> list[str]:
    """Returns the regular files below a folder, as sorted names with slashes.

    Links are followed. A folder is visited once, whatever links lead to it, so that
    one to a parent ends. Names that are no regular file (dangling links, FIFOs,
    sockets, devices) are skipped, and a warning counts and names them; so are folders
    that may not be read. What macOS puts beside files (._x, __MACOSX) is ignored.

    Args:
      root: the folder.
      suffixes: of the files, in lower case; () for all.
      recursive: whether folders in it are visited.
    """
    names: list[str] = []
    skipped: list[str] = []
    visited = set()

    def denied(error):
        skipped.append(f"{error.filename} ({error.strerror})")

    for folder, inside, files in os.walk(root, onerror=denied, followlinks=True):
        visited.add(_identity(folder))
        # real folders before links: their names are the ones to keep
        inside.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        enter = []
        for name in inside if recursive else ():
            identity = _identity(os.path.join(folder, name))
            if name != "__MACOSX" and identity not in visited:
                visited.add(identity)
                enter.append(name)
        inside[:] = enter
        for name in files:
            if name.startswith("._") or not name.lower().endswith(suffixes or ""):
                continue
            path = os.path.join(folder, name)
            if problem := why_not_regular(path):
                skipped.append(f"{os.path.relpath(path, root)} ({problem})")
            else:
                names.append(os.path.relpath(path, root).replace(os.sep, "/"))
    if skipped:
        shown = "; ".join(sorted(skipped)[:5]) + ("; ..." if len(skipped) > 5 else "")
        logger.warning(
            "%s: %d names are no readable files and are skipped: %s",
            root,
            len(skipped),
            shown.encode(errors="replace").decode(),
        )
    return sorted(names)


def why_not_regular(path: str | os.PathLike) -> str:
    """Returns why a path must not be opened as a file; "" where it may be.

    Opening a FIFO waits for a writer, a device may never end.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "a link to nothing" if os.path.islink(path) else "no such file"
    except OSError as error:  # a loop of links, a folder that may not be entered
        return error.strerror or str(error)
    if stat.S_ISREG(mode):
        return ""
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def _identity(folder):
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON for people to read, whole or absent: indented, keys in order."""
    atomic_write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: str | os.PathLike, missing: str) -> dict[str, Any]:
    """Reads a JSON file that holds {...}.

    Args:
      path: the file, on a disk or gs://.
      missing: what to tell who names a file that is not there.

    Raises:
      FileNotFoundError: no such file. UsageError: it is not JSON, or something else.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise FileNotFoundError(missing)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        shown = str(content)[:60]
        raise UsageError(f"{path}: expected settings by name, {{...}}, got {shown}")
    return content


@contextlib.contextmanager
def atomic_path(
    path: str | os.PathLike, partial: pathlib.Path | None = None
) -> Generator[pathlib.Path]:
    """For writers that take a path: a temporary one, renamed to `path` at the end.

    After an exception nothing is left behind.

    Args:
      path: on a disk; its folder exists.
      partial: the temporary path, of a file that no other process writes; what a
        killed one left there is then overwritten. None chooses a new name.
    """
    path = pathlib.Path(path)
    partial = partial or path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(folder: str | os.PathLike) -> Generator[pathlib.Path]:
    """For writers of several files and folders: an empty folder to write into.

    At the end its files move into `folder`, where they replace those of their names;
    all else stays. After an exception before, `folder` is as it was, or still absent.

    Args:
      folder: on a disk; made, with its parents, if it does not exist.
    """
    folder = pathlib.Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}-", dir=folder.parent
    ) as scratch:
        new = pathlib.Path(scratch)
        yield new
        for file in sorted(path for path in new.rglob("*") if path.is_file()):
            place = folder / file.relative_to(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)


def sync(path: str | os.PathLike) -> None:
    """Flushes a file to the disk: a rename must not outlive its content."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sha256_file(path: str | os.PathLike) -> str:
    """Returns the hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the hex sha256 of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """Returns the hex sha256 of an array's shape, dtype and bytes."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def sha256_folder(folder: str | os.PathLike, pattern: str = "*") -> str:
    """Returns the hex sha256 of all files in a folder: their relative paths and bytes.

    Args:
      folder: searched with the folders in it.
      pattern: of the names of the files that count, as "*.py".

    Raises:
      FileNotFoundError: no such folder.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {str(folder)!r} does not exist")
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob(pattern) if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(f"{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def _to_bytes(content):
    if not callable(content):
        return content
    buffer = io.BytesIO()
    content(buffer)
    return buffer.getvalue()
