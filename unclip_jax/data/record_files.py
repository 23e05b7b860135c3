"""The files of a folder of records: whole or absent, and what is done so far.

unfinished/plan.json holds what the records will be; unfinished/00003.json and .npz
that shard 3 is written, what it left out and its embeddings' sums, so that finishing
need not read the shards again.
"""

import json
import pathlib
import shutil

import numpy as np

from unclip_jax.data.open_files import check_readable
from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_path, atomic_write, sha256_file
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
    atomic_write(plan_file, json.dumps(plan, indent=1))


def mark_done(folder, i, entry, skipped, sums) -> None:
    """Says that shard i is written; the json comes last and stands for both files."""
    base = folder / UNFINISHED / f"{i:05d}"
    state = sums.state()
    atomic_write(base.with_suffix(".npz"), lambda file: np.savez(file, **state))
    text = json.dumps({"entry": entry, "skipped": skipped}, ensure_ascii=False)
    atomic_write(base.with_suffix(".json"), text)


def is_shard_done(folder, i, shard_name) -> bool:
    """Whether shard i was marked as done and its file has the size it had then."""
    mark, shard = folder / UNFINISHED / f"{i:05d}.json", folder / shard_name
    if not mark.is_file() or not shard.is_file():
        return False
    entry = json.loads(mark.read_text(encoding="utf-8"))["entry"]
    return shard.stat().st_size == entry["bytes"]


def read_done(folder, i):
    """(entry, skipped, GaussianSums) of a shard marked as done."""
    base = folder / UNFINISHED / f"{i:05d}"
    mark = json.loads(base.with_suffix(".json").read_text(encoding="utf-8"))
    with np.load(base.with_suffix(".npz")) as state:
        return mark["entry"], mark["skipped"], GaussianSums.from_state(state)


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
