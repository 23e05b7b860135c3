"""Where the samples of many tars lie: found once, kept as one file of equal rows.

The file's name holds a hash of the tars' names and sizes: the index of a copy serves as
well. Where the tars are of another time than when it was made, some of its rows are
compared with them; if they differ, an index named by the times too is made.

The tars are divided into parts, and the processes of a run share the parts: each scans
its own, writes every part as a file into a folder beside the index and waits for those
of the others; the first joins them. Nothing but the folder is shared. Where no part of
the others appears for a while (they have another folder, or are gone) a process scans
what is missing itself.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from unclip_jax import files
from unclip_jax.data.sources.tar_headers import (
    AT_ONCE,
    TEXTS,
    WAITING,
    has_member,
    scan_tar,
)
from unclip_jax.errors import UsageError
from unclip_jax.parallel import distributed

COLUMNS = [
    ("tar", np.uint32),
    ("image_at", np.int64),
    ("image_size", np.int64),
    ("text_at", np.int64),
    ("text_size", np.int64),
    ("is_json", np.bool_),
]
VERSION = 2  # of what a scan finds in the same tars
PARTS = 1024  # at most, of equally many tars
THREADS = 16  # each with a tar, where a disk has to be waited for
PATIENCE = 60.0  # seconds without a new part of any other process
VERIFIED = 2**24  # bytes of an index that are read whole when it is opened

logger = logging.getLogger(__name__)


class Index:
    """The rows of an index file: COLUMNS and "key" (bytes).

    Rows are read one at a time: through a mapped file, the threads of a process would
    wait for each other whenever one touches a page of a bucket.

    Attributes:
      failed: {reason: samples that are no examples}.
      digest: of a thousand rows, which stand for all.
      times: a hash of the tars' times when it was made.
    """

    def __init__(self, path: pathlib.Path):
        """Opens the file and the .json beside it.

        Raises ValueError, or whatever numpy does, if they are damaged.
        """
        rows = np.load(path, mmap_mode="r")
        if rows.dtype != _dtype(rows.dtype["key"].itemsize) or rows.ndim != 1:
            raise ValueError(f"rows of {rows.dtype}")
        self._length, self._dtype, self._offset = len(rows), rows.dtype, rows.offset
        about = json.loads(path.with_suffix(".json").read_text())
        if "digest" not in about:  # an older version's
            about = {"failed": about, "digest": _digest([rows], len(rows))}
        self.failed: dict[str, int] = dict(collections.Counter(about["failed"]))
        self.digest: str = about["digest"]
        self.times: str = about.get("times", "")
        if rows.nbytes <= VERIFIED and _digest([rows], len(rows)) != self.digest:
            raise ValueError("not the rows that were written")
        self._file = open(path, "rb", buffering=0)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> Any:
        return self.read(i, 1)[0]

    def read(self, first: int, count: int) -> np.ndarray:
        """Returns `count` rows, fewer at the end."""
        size = self._dtype.itemsize
        at = self._offset + int(first) * size
        count = min(count, self._length - int(first))
        data = os.pread(self._file.fileno(), count * size, at)
        return np.frombuffer(data, self._dtype)

    def agrees(self, tars: Sequence[pathlib.Path]) -> bool:
        """Returns whether some rows, evenly spread, are where the tars have them."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(64, len(self)), dtype=int))
        with ThreadPoolExecutor(16) as pool:
            return all(pool.map(lambda i: self._agrees(self[i], tars), chosen))

    def _agrees(self, row, tars) -> bool:
        key = bytes(row["key"])
        if row["tar"] >= len(tars):
            return False
        with open(tars[row["tar"]], "rb", buffering=0) as tar:
            return all(
                has_member(
                    tar.fileno(), key, int(row[f"{what}_at"]), row[f"{what}_size"]
                )
                for what in ("image", "text")
            )


def open_index(
    tars: Sequence[pathlib.Path],
    folders: Sequence[str | os.PathLike],
    texts: Sequence[str] = TEXTS,
) -> Index:
    """Returns the index of some tars, read or made.

    Args:
      tars: their paths, in order.
      folders: where it may be; it is written into the first that takes it.
      texts: suffixes of captions; of a sample that has several, the first counts.

    Raises:
      UsageError: damaged tars; PermissionError: it cannot be written.
    """
    stats = [file.stat() for file in tars]
    named = [(f.name, s.st_size) for f, s in zip(tars, stats, strict=True)]
    times = [stat.st_mtime_ns for stat in stats]
    dated = [(*entry, time) for entry, time in zip(named, times, strict=True)]
    names = [_file_name(texts, stamp) for stamp in (named, dated)]
    taken = False
    for place in [pathlib.Path(folder, name) for name in names for folder in folders]:
        index = _open(place)
        if index and (index.times == _hash_times(times) or index.agrees(tars)):
            return index
        taken = taken or index is not None
    places = [pathlib.Path(folder, names[taken]) for folder in folders]
    return Index(scan(tars, places, texts, times))


def _open(place) -> Index | None:
    """The index in a file; None where there is none, or a damaged one, then removed."""
    about = place.with_suffix(".json")
    if not about.is_file():  # written last: both files are whole
        return None
    try:
        return Index(place)
    except Exception as error:  # numpy raises many kinds for a damaged header
        logger.warning("%s is damaged (%s): the tars are indexed again", place, error)
    with contextlib.suppress(OSError):  # where nobody can write, the next place counts
        about.unlink(missing_ok=True)
    return None


def _file_name(texts, stamp) -> str:
    return f"tar-index-{files.sha256_json([VERSION, texts, stamp])[:16]}.npy"


def _hash_times(times) -> str:
    return files.sha256_json(times)[:16]


def scan(tars, places, texts=TEXTS, times=()) -> pathlib.Path:
    """Makes an index with the other processes of the run, in the first place that can.

    Returns its path; for arguments and errors see `open_index`. `times` are the tars'.
    """
    errors = []
    for place in places:
        try:
            _Parts(place, tars, texts, times).make()
        except OSError as error:
            if not place.with_suffix(".json").is_file():
                errors.append(error)
                continue
            # another run has made it meanwhile, and removed the parts
        if errors:
            logger.warning("%s; the index of the tars is kept in %s", errors[0], place)
        return place
    raise PermissionError(
        f"the index of the tars cannot be written into {str(places[0].parent)!r} "
        f"({errors[0]}): set config.data.cache to another folder"
    )


class _Parts:
    """The parts of an index that is being made, as files in a folder beside it.

    00012.npz has the rows of part 12, 00012.damaged what is wrong with its tars.
    """

    def __init__(self, place: pathlib.Path, tars, texts, times):
        self._place, self._tars, self._texts = place, tars, texts
        self._times = _hash_times(times)
        self._folder = place.with_suffix(".parts")
        self._size = -(-len(tars) // PARTS)  # tars of a part
        self._count = -(-len(tars) // self._size)

    def make(self) -> None:
        """Returns when the index is there. Raises UsageError for damaged tars."""
        number, processes = distributed.process_number()
        self._folder.mkdir(parents=True, exist_ok=True)
        mine = range(number, self._count, processes)
        for part in mine:  # they may have been repaired since
            self._damage(part).unlink(missing_ok=True)
        self._scan(part for part in mine if not self._file(part).is_file())
        before, since = 0, time.monotonic()
        while not self._place.with_suffix(".json").is_file():
            missing = self._missing()
            if len(missing) != before:
                before, since = len(missing), time.monotonic()
            is_late = time.monotonic() - since > PATIENCE
            if missing and is_late:  # the others have another folder, or are gone
                first = number * len(missing) // processes
                several = (missing[first:] + missing[:first])[: 2 * THREADS]
                self._scan(several)
                before -= len(several)
            elif not missing and (number == 0 or is_late):
                self._refuse_damage()
                self._join()
                shutil.rmtree(self._folder, ignore_errors=True)
            else:
                self._refuse_damage()
                time.sleep(0.2)

    def _file(self, part: int) -> pathlib.Path:
        return self._folder / f"{part:05d}.npz"

    def _damage(self, part: int) -> pathlib.Path:
        return self._folder / f"{part:05d}.damaged"

    def _missing(self) -> list[int]:
        """Parts that nobody has scanned yet, by one listing."""
        names = os.listdir(self._folder) if self._folder.is_dir() else []
        done = {int(name.partition(".")[0]) for name in names if name[0] != "."}
        return sorted(set(range(self._count)) - done)

    def _scan(self, parts: Iterable[int]) -> None:
        """Scans the tars of some parts, several at once, and writes the parts."""
        parts = list(parts)
        numbers = [self._tars_of(part) for part in parts]
        waits = _waiting_time(self._tars) > 1e-3
        threads, read_bytes = (THREADS, WAITING) if waits else (2, AT_ONCE)
        scan_one = functools.partial(self._scan_tar, read_bytes=read_bytes)
        with ThreadPoolExecutor(threads) as pool:
            results = _map_ahead(pool, scan_one, itertools.chain(*numbers), 2 * threads)
            for part, several in zip(parts, numbers, strict=True):
                scanned = list(itertools.islice(results, len(several)))
                damaged = [one for one in scanned if isinstance(one, str)]
                if damaged:
                    files.atomic_write(self._damage(part), json.dumps(damaged))
                else:
                    self._write(part, scanned)

    def _tars_of(self, part: int) -> range:
        first = part * self._size
        return range(first, min(first + self._size, len(self._tars)))

    def _scan_tar(
        self, number: int, read_bytes: int
    ) -> tuple[np.ndarray, dict[str, int]] | str:
        """The rows of a tar and what it has besides, or what is wrong with it."""
        try:
            samples, failed = scan_tar(self._tars[number], self._texts, read_bytes)
        except (OSError, ValueError) as error:
            return f"{self._tars[number]} ({error})"
        width = max((len(sample[-1]) for sample in samples), default=1)
        rows = [(number, *sample) for sample in samples]
        return np.array(rows, _dtype(width)), failed

    def _write(self, part, scanned) -> None:
        failed = sum(
            (collections.Counter(f) for _, f in scanned), collections.Counter()
        )
        width = max(rows.dtype["key"].itemsize for rows, _ in scanned)
        rows = np.concatenate([rows.astype(_dtype(width)) for rows, _ in scanned])
        about = json.dumps({"failed": failed, "width": width, "count": len(rows)})
        files.atomic_write(
            self._file(part), lambda file: np.savez(file, about=about, rows=rows)
        )

    def _refuse_damage(self) -> None:
        damaged = []
        for file in sorted(self._folder.glob("[0-9]*.damaged")):
            damaged += json.loads(file.read_text())
        if damaged and not self._missing():
            more = f" and {len(damaged) - 10} more" if len(damaged) > 10 else ""
            raise UsageError(
                f"{len(damaged)} of {len(self._tars)} tars are damaged: "
                f"{'; '.join(damaged[:10])}{more}. Copy them again or move them away"
            )

    def _join(self) -> None:
        """Writes the index, a part at a time."""
        parts = [np.load(self._file(part)) for part in range(self._count)]
        every = [json.loads(str(part["about"])) for part in parts]
        dtype = _dtype(max(about["width"] for about in every))
        total = sum(about["count"] for about in every)
        failed = _total(about["failed"] for about in every)

        def rows():
            return (part["rows"].astype(dtype) for part in parts)

        def write(file):
            header = {"descr": dtype.descr, "fortran_order": False, "shape": (total,)}
            np.lib.format.write_array_header_1_0(file, header)
            for several in rows():
                file.write(several)

        files.atomic_write(self._place, write)
        about = {"failed": failed, "digest": _digest(rows(), total)}
        about["times"] = self._times
        files.atomic_write(self._place.with_suffix(".json"), json.dumps(about))


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for several in counts:
        total.update(several)
    return dict(total)


def _waiting_time(tars) -> float:
    """Seconds that a short read takes, the median of a few."""
    seconds = []
    for file in tars[:: max(1, len(tars) // 5)]:
        with contextlib.suppress(OSError), open(file, "rb", buffering=0) as tar:
            began = time.perf_counter()
            os.pread(tar.fileno(), 4096, tar.seek(0, os.SEEK_END) // 2)
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds or [0.0])


def _dtype(width: int) -> np.dtype:
    """Of a row whose key has up to `width` bytes."""
    return np.dtype([*COLUMNS, ("key", f"S{width}")])


def _digest(arrays: Iterable[np.ndarray], total: int) -> str:
    """sha256 of a thousand of the rows in all arrays, evenly spread."""
    step, first, digest = max(1, total // 1000), 0, hashlib.sha256()
    for rows in arrays:
        digest.update(rows[-first % step :: step].tobytes())
        first += len(rows)
    return digest.hexdigest()


def _map_ahead(pool, function, items, ahead: int) -> Iterator[Any]:
    """function(item) of each, in order, of which `ahead` more are begun."""
    futures: collections.deque = collections.deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()
