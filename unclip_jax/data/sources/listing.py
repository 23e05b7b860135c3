"""The files that config.data.path names, for sources that are made of many."""

import fnmatch
import os
import pathlib

from unclip_jax.files import list_files


def find_files(path: str, pattern: str, what: str) -> list[pathlib.Path]:
    """The files of a folder that match, sorted; or the one file that `path` is.

    Args:
      path: a folder or a file.
      pattern: of names below the folder, e.g. "train*.parquet" or "**/*.tar".
      what: they are, for messages.

    Raises:
      FileNotFoundError: no such path, or nothing in it matches.
    """
    root = pathlib.Path(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(
            f"config.data.path {str(path)!r} does not exist; expected {what} or a "
            "folder of them"
        )
    parts = pattern.split("/")
    found = [
        root / name
        for name in list_files(root, _suffix(pattern))
        if _matches(name.split("/"), parts)
    ]
    if not found:
        inside = sorted(os.listdir(root))[:5]
        raise FileNotFoundError(
            f"no file in {str(path)!r} matches config.data.files {pattern!r} "
            f"(expected {what}; the folder holds {', '.join(inside) or 'nothing'})"
        )
    return found


def _suffix(pattern: str) -> tuple[str, ...]:
    """The pattern's own suffix: of other files nothing need be said."""
    suffix = pathlib.PurePath(pattern).suffix.lower()
    return (suffix,) if suffix and not set(suffix) & set("*?[") else ()


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path match those of a pattern, as glob has it."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        folders = range(len(names) + 1)
        return any(_matches(names[k:], pattern[1:]) for k in folders)
    return (
        bool(names)
        and fnmatch.fnmatchcase(names[0], pattern[0])
        and _matches(names[1:], pattern[1:])
    )


def names_and_sizes(files, root) -> list[tuple[str, int]]:
    """(name below root, bytes) of each file, for fingerprints."""
    root = pathlib.Path(root)
    folder = root if root.is_dir() else root.parent
    return [(str(file.relative_to(folder)), file.stat().st_size) for file in files]
