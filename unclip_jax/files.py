"""Files that are whole or absent, and sha256 of what is in them.

A file is written under a temporary name beside its own, flushed to the disk and then
renamed: no reader, and no crash, sees half of it. Objects of a bucket (gs://) appear
whole anyway and are written as they are.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from etils import epath

from unclip_jax.errors import UsageError


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


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON for people to read, whole or absent: indented, keys in order."""
    atomic_write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: str | os.PathLike, missing: str) -> Any:
    """Reads a JSON file.

    Args:
      path: the file.
      missing: what to tell who names a file that is not there.

    Raises:
      FileNotFoundError: no such file. UsageError: it is not JSON.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(missing)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error


@contextlib.contextmanager
def atomic_path(
    path: str | os.PathLike, partial: pathlib.Path | None = None
) -> Iterator[pathlib.Path]:
    """For writers that take a path: a temporary one, renamed to `path` at the end.

    After an exception nothing is left behind.

    Args:
      path: on a disk; its folder exists.
      partial: the temporary path, of a file that no other process writes; what a
        killed one left there is then overwritten. None chooses a new name.
    """
    path = pathlib.Path(path)
    partial = partial or path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
