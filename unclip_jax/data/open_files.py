"""Readers of more shards than a process may hold open, and what to say at the limit.

A set of a billion examples has a hundred thousand shards, and Linux gives a process
1,024 descriptors unless it asks for more.
"""

import collections
import contextlib
import errno
import resource
import threading
from collections.abc import Callable
from typing import Any


def check_readable(path) -> None:
    """Raises the OSError that opening a file gives, and says what to do about EMFILE.

    For libraries that keep the reason to themselves.
    """
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise OSError(
            error.errno,
            f"too many open files, of {soft} allowed: run `ulimit -n 65536` first, "
            "where that is refused raise nofile in /etc/security/limits.conf, or "
            "--ulimit of the container",
            str(path),
        ) from error


class Readers:
    """The open readers of one set of shards; the least recently used is let go first.

    At most an eighth of the files that the process may open are kept open, as several
    sets may be in use besides all else. A reader that is let go closes when the last
    thread that uses it drops it.
    """

    def __init__(self, count: int, make: Callable[[int], Any]):
        """Asks the system for more open files where `count` shards need more.

        Args:
          count: number of shards.
          make: opens the reader of a shard, by its number.
        """
        self._make = make
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        if count > _share():
            _raise_limit()

    def __getitem__(self, number: int) -> Any:
        with self._lock:
            if number in self._readers:
                self._readers.move_to_end(number)
                return self._readers[number]
        reader = self._make(number)  # two threads may both: the first one's is kept
        with self._lock:
            reader = self._readers.setdefault(number, reader)
            while len(self._readers) > _share():
                self._readers.popitem(last=False)
        return reader


def _share() -> int:
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)


def _raise_limit() -> None:
    """Makes the hard limit (`ulimit -Hn`) the soft one, which only select() needs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
