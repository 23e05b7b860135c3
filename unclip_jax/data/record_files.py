"""The files of a folder of records: whole or absent, and what is done so far.

unfinished/plan.json holds what the records will be; unfinished/00003.json and .npz
that shard 3 is written, what it left out and its embeddings' sums, so that finishing
need not read the shards again.
"""

import hashlib
import json
import os
import pathlib
import shutil

import numpy as np

from unclip_jax.data.open_files import check_readable

UNFINISHED, PLAN = "unfinished", "plan.json"


def open_shard(path):
    """An ArrayRecordReader that reads one record at a time.

    Raises ValueError for a file that is not an ArrayRecord, OSError for one that cannot
    be opened.
    """
    from array_record.python import array_record_module

    try:
        return array_record_module.ArrayRecordReader(
            str(path),
            options="readahead_buffer_size:0,max_parallelism:0",
            file_reader_buffer_size=1 << 14,  # a few kB are read at a time
        )
    except RuntimeError as error:
        check_readable(path)
        raise ValueError(f"{path} is not an ArrayRecord: {error}") from error


def write_shard(final, records) -> dict:
    """Writes bytes objects as ArrayRecord: {"bytes", "sha256"} of the file.

    When `records` raises, nothing is left behind.
    """
    from array_record.python import array_record_module

    partial = final.with_suffix(".partial")
    try:
        writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
        try:
            for record in records:
                writer.write(record)
        finally:
            writer.close()
        entry = {"bytes": partial.stat().st_size, "sha256": file_hash(partial)}
        _sync(partial)
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)
    return entry


class Sums:
    """Streaming float64 sums of embeddings, as they are and scaled to norm 1."""

    NAMES = ("count", "norm", "first", "second", "unit_first", "unit_second")

    def __init__(self, dim: int | None):
        dim = dim or 0
        self.count, self.norm = 0.0, 0.0
        self.first, self.unit_first = np.zeros(dim), np.zeros(dim)
        self.second, self.unit_second = np.zeros((2, dim, dim))
        self._waiting = []

    def add(self, x) -> None:
        """One embedding (D,); products are taken for many at once."""
        self._waiting.append(np.asarray(x, np.float64))
        if len(self._waiting) == 1024:
            self._flush()

    def merge(self, other) -> None:
        other._flush()
        self._flush()
        for name in self.NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def _flush(self):
        if self._waiting:
            x = np.stack(self._waiting)
            self._waiting = []
            self.count += len(x)
            norms = np.linalg.norm(x, axis=1, keepdims=True)
            self.norm += norms.sum()
            self.first += x.sum(axis=0)
            self.second += x.T @ x
            unit = x / norms.clip(1e-12)
            self.unit_first += unit.sum(axis=0)
            self.unit_second += unit.T @ unit

    def state(self) -> dict[str, np.ndarray]:
        self._flush()
        return {name: np.asarray(getattr(self, name)) for name in self.NAMES}

    @classmethod
    def from_state(cls, state) -> "Sums":
        """The sums of `state`; an older version's has none of unit embeddings: NaN."""
        sums = cls(len(state["first"]))
        for name in cls.NAMES:
            default = np.full_like(getattr(sums, name), np.nan)
            setattr(sums, name, np.array(state.get(name, default)))
        return sums

    def statistics(self) -> dict[str, np.ndarray]:
        """count, mean (D,), cov (D, D) unbiased, std (D,) its diagonal's root.

        mean_norm is that of the embeddings; unit_mean and unit_cov are of those scaled
        to norm 1, and are left out where they are not known.
        """
        self._flush()
        mean, cov = self._moments(self.first, self.second)
        statistics = {
            "count": np.asarray(int(self.count)),
            "mean": mean,
            "cov": cov,
            "std": np.sqrt(np.clip(np.diagonal(cov), 0, None)),
            "mean_norm": np.asarray(self.norm / self.count),
        }
        if np.isfinite(self.unit_first).all():
            unit_mean, unit_cov = self._moments(self.unit_first, self.unit_second)
            statistics |= {"unit_mean": unit_mean, "unit_cov": unit_cov}
        return statistics

    def _moments(self, first, second):
        """Mean (D,) and unbiased covariance (D, D) from sums."""
        mean = first / self.count
        cov = (second - self.count * np.outer(mean, mean)) / max(self.count - 1, 1)
        return mean, (cov + cov.T) / 2


def claim_folder(folder, plan, manifest_name) -> None:
    """Makes the folder this plan's, or finds that it is already.

    Raises FileExistsError when it is another's.
    """
    folder = pathlib.Path(folder)
    plan_file = folder / UNFINISHED / PLAN
    for file in (folder / manifest_name, plan_file):
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            other = [name for name in plan if found.get(name) != plan[name]]
            if other:
                name = other[0]
                raise FileExistsError(
                    f"{str(folder)!r} holds records made otherwise ({name} was "
                    f"{found.get(name)!r}, now {plan[name]!r}); choose another folder "
                    "or remove it"
                )
            return
    if folder.is_dir() and any(file.name != UNFINISHED for file in folder.iterdir()):
        raise FileExistsError(
            f"{str(folder)!r} is not empty and holds no records; choose another folder"
        )
    plan_file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(plan_file, json.dumps(plan, indent=1).encode())


def mark_done(folder, i, entry, skipped, sums) -> None:
    """Says that shard i is written; the json comes last and stands for both files."""
    base = folder / UNFINISHED / f"{i:05d}"
    write_npz(base.with_suffix(".npz"), sums.state())
    text = json.dumps({"entry": entry, "skipped": skipped}, ensure_ascii=False)
    write_bytes(base.with_suffix(".json"), text.encode())


def is_shard_done(folder, i, shard_name) -> bool:
    """Whether shard i was marked as done and its file has the size it had then."""
    mark, shard = folder / UNFINISHED / f"{i:05d}.json", folder / shard_name
    if not mark.is_file() or not shard.is_file():
        return False
    entry = json.loads(mark.read_text(encoding="utf-8"))["entry"]
    return shard.stat().st_size == entry["bytes"]


def read_done(folder, i):
    """(entry, skipped, Sums) of a shard marked as done."""
    base = folder / UNFINISHED / f"{i:05d}"
    mark = json.loads(base.with_suffix(".json").read_text(encoding="utf-8"))
    with np.load(base.with_suffix(".npz")) as state:
        return mark["entry"], mark["skipped"], Sums.from_state(state)


def remove_unfinished(folder) -> None:
    """Removes what an interrupted writer left in `folder`."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def why_unfinished(folder) -> str:
    """What to tell who opens a folder without a manifest."""
    plan = folder / UNFINISHED / PLAN
    if not plan.is_file():
        return f"{str(folder)!r} holds no records: it has no manifest.json"
    total = json.loads(plan.read_text(encoding="utf-8"))["num_shards"]
    done = len(list((folder / UNFINISHED).glob("[0-9]*.json")))
    return (
        f"the records in {str(folder)!r} are unfinished ({done} of {total} shards); "
        "run the same `python -m unclip_jax.embed` command again"
    )


def write_npz(path, arrays) -> None:
    """np.savez, whole or absent."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    _sync(partial)
    os.replace(partial, path)


def write_bytes(path, data: bytes) -> None:
    """A file, whole or absent."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    _sync(partial)
    os.replace(partial, path)


def file_hash(path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_hash(value) -> str:
    """sha256 of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sync(path) -> None:
    """Flushes a file to disk: a rename must not outlive its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
