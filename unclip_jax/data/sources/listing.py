"""The files that config.data.path names, for sources that are made of many."""

import glob
import os
import pathlib


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
    names = glob.glob(pattern, root_dir=root, recursive=True)
    found = sorted(root / name for name in names)
    found = [file for file in found if file.is_file()]
    if not found:
        inside = sorted(os.listdir(root))[:5]
        raise FileNotFoundError(
            f"no file in {str(path)!r} matches config.data.files {pattern!r} "
            f"(expected {what}; the folder holds {', '.join(inside) or 'nothing'})"
        )
    return found


def names_and_sizes(files, root) -> list[tuple[str, int]]:
    """(name below root, bytes) of each file, for fingerprints."""
    root = pathlib.Path(root)
    folder = root if root.is_dir() else root.parent
    return [(str(file.relative_to(folder)), file.stat().st_size) for file in files]
