"""The files of a folder of records: whole or absent, and what is done so far.

unfinished/plan.json holds what the records will be; unfinished/process-00003.json which
shards process 3 has written, what they left out, and which file has the sums of their
embeddings, so that finishing need not read the shards again. There is one file of sums
per process, however many shards. Older versions had 00003.json and 00003.npz for shard
3.
"""

import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from unclip_jax.data.open_files import check_readable
from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_path, atomic_write, read_json, sha256_file
from unclip_jax.gaussian import GaussianSums

UNFINISHED, PLAN = "unfinished", "plan.json"


def open_shard(path):
    """An ArrayRecordReader that reads one record at a time.

    Raises UsageError for a file that is not an ArrayRecord, OSError for one that cannot
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
        raise UsageError(f"{path} is not an ArrayRecord: {error}") from error


def write_shard(final, records) -> dict:
    """Writes bytes objects as ArrayRecord: {"bytes", "sha256"} of the file.

    When `records` raises, nothing is left behind.
    """
    from array_record.python import array_record_module

    with atomic_path(final, final.with_suffix(".partial")) as partial:
        writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
        try:
            for record in records:
                writer.write(record)
        finally:
            writer.close()
        entry = {"bytes": partial.stat().st_size, "sha256": sha256_file(partial)}
    return entry


def claim_folder(folder, plan, manifest_name) -> None:
    """Makes the folder this plan's, or finds that it is already.

    Raises FileExistsError when it is another's.
    """
    folder = pathlib.Path(folder)
    plan_file = folder / UNFINISHED / PLAN
    for file in (folder / manifest_name, plan_file):
        if file.is_file():
            found = read_json(file, "")
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
    atomic_write(plan_file, json.dumps(plan, indent=1))


def mark_done(folder, process: int, i: int, entry, skipped, sums) -> None:
    """Says that shard i is written; the json comes last and stands for both files."""
    place = folder / UNFINISHED / f"process-{process:05d}.json"
    mark: dict[str, Any] = {"sums": "", "shards": {}}
    if place.is_file():
        mark = read_json(place, "")
        before = _read_sums(place.with_name(mark["sums"]))
        before.merge(sums)
        sums = before
    old = mark["sums"]
    mark["sums"] = f"process-{process:05d}-{'b' if old.endswith('a.npz') else 'a'}.npz"
    mark["shards"][str(i)] = {"entry": entry, "skipped": skipped}
    state = {name: _triangle(array) for name, array in sums.state().items()}
    atomic_write(place.with_name(mark["sums"]), lambda file: np.savez(file, **state))
    atomic_write(place, json.dumps(mark, ensure_ascii=False))
    if old:
        place.with_name(old).unlink(missing_ok=True)


def read_done(folder) -> tuple[dict[int, dict], list[pathlib.Path]]:
    """({shard: {"entry", "skipped"}}, files of sums) of what is marked as done."""
    shards: dict[int, dict] = {}
    sums: list[pathlib.Path] = []
    for file in sorted((folder / UNFINISHED).glob("*.json")):
        if file.name == PLAN:
            continue
        mark = read_json(file, "")
        if file.name.startswith("process-"):
            shards |= {int(i): shard for i, shard in mark["shards"].items()}
            sums.append(file.with_name(mark["sums"]))
        else:
            shards[int(file.stem)] = mark
            sums.append(file.with_suffix(".npz"))
    return shards, sums


def merge_sums(sums: GaussianSums, paths) -> None:
    """Adds what the files of sums hold."""
    for path in paths:
        sums.merge(_read_sums(path))


def file_sizes(folder) -> dict[str, int]:
    """{name: bytes} of the files in a folder, by one listing."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def _read_sums(path) -> GaussianSums:
    with np.load(path) as state:
        return GaussianSums.from_state({name: _square(state[name]) for name in state})


def _triangle(array):
    """The upper triangle of a symmetric matrix, as (1, D (D + 1) / 2); else itself."""
    return array[np.triu_indices(len(array))][None] if array.ndim == 2 else array


def _square(array):
    if array.ndim != 2 or len(array) == array.shape[1] != 1:
        return array
    size = int((2 * array.size) ** 0.5)
    square = np.zeros((size, size))
    square[np.triu_indices(size)] = array[0]
    return square + np.triu(square, 1).T


def remove_unfinished(folder) -> None:
    """Removes what an interrupted writer left in `folder`."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def why_unfinished(folder) -> str:
    """What to tell who opens a folder without a manifest."""
    plan = folder / UNFINISHED / PLAN
    if not plan.is_file():
        return f"{str(folder)!r} holds no records: it has no manifest.json"
    total = read_json(plan, "").get("num_shards")
    done = len(read_done(folder)[0])
    return (
        f"the records in {str(folder)!r} are unfinished ({done} of {total} shards); "
        "run the same `python -m unclip_jax.embed` command again"
    )
