"""Files that need a disk, of a run whose folder is a bucket.

Objects cannot be appended to. So what grows is kept on the local disk and copied whole,
at most every SECONDS and when the run ends; a killed run loses so many seconds of its
metrics and nothing else. In a folder on a disk, files are written where they belong.
"""

import fnmatch
import pathlib
import tempfile
import time

from etils import epath

from unclip_jax import files

SECONDS = 60.0


class Mirror:
    """A local folder whose files appear in the run's.

    Attributes:
      folder: pathlib.Path where to write; the run's own when that is on a disk.
    """

    def __init__(self, workdir, fetch: str):
        """`fetch`: which files of the run to go on with, as "*" or "metrics.jsonl"."""
        self._target = self._scratch = None
        if not files.is_bucket(workdir):
            self.folder = pathlib.Path(workdir)
            return
        self._target = epath.Path(workdir)
        self._scratch = tempfile.TemporaryDirectory(prefix="unclip_jax-")
        self.folder = pathlib.Path(self._scratch.name)
        self._copied: dict[str, tuple[int, int]] = {}  # name -> (bytes, ns) when copied
        self._last = time.monotonic()
        there = self._target.iterdir() if self._target.exists() else ()
        for file in there:
            if fnmatch.fnmatch(file.name, fetch):
                copy = self.folder / file.name
                copy.write_bytes(file.read_bytes())
                self._copied[file.name] = _state(copy)

    def sync(self, now: bool = False) -> None:
        """Copies what has changed, if it is time or `now`."""
        if self._target is None:
            return
        if not now and time.monotonic() - self._last < SECONDS:
            return
        for file in sorted(f for f in self.folder.rglob("*") if f.is_file()):
            name = file.relative_to(self.folder).as_posix()
            if self._copied.get(name) != (state := _state(file)):
                (self._target / name).parent.mkdir(parents=True, exist_ok=True)
                (self._target / name).write_bytes(file.read_bytes())
                self._copied[name] = state
        self._last = time.monotonic()

    def close(self) -> None:
        """Copies what is left and forgets the local folder."""
        self.sync(now=True)
        if self._scratch is not None:
            self._scratch.cleanup()


def _state(file: pathlib.Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns
