"""Whether shards of records hold what was written: hashed once, and remembered.

Sizes do not tell: a shard that was made anew from other examples may have the same. So
the first process that opens a folder hashes its shards, and a file in the user's cache
remembers size and time of change of those that agree, which is all that is looked at
later.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax import files
from unclip_jax.data import open_files, record_files
from unclip_jax.errors import UsageError

# Larger folders are not hashed when they are opened: hundreds of hosts may open them.
LIMIT = 4 << 30  # bytes
THREADS = 4


def check_shards(
    folder: pathlib.Path,
    shards: Sequence[Mapping[str, Any]],
    fingerprint: str,
    limit: float = LIMIT,
) -> None:
    """Compares shards with the hashes in their manifest, unless that is known.

    A shard with damaged records passes, since these are left out one by one.

    Args:
      folder: the records.
      shards: the manifest's entries, whose sizes were checked.
      fingerprint: of the records.
      limit: bytes to hash at most; a warning says when there are more.

    Raises UsageError for a shard of other records.
    """
    known, stats = _read(_cache_file(folder, fingerprint)), _stats(folder, shards)
    unknown = [s for s in shards if known.get(s["file"]) != stats[s["file"]]]
    if not unknown:
        return
    total = sum(shard["bytes"] for shard in unknown)
    if total > limit:
        warnings.warn(
            f"{folder}: {total / 2**30:.0f} GiB of records are not compared with "
            "their hashes; unclip_jax.data.records.RecordReader(folder).verify() does "
            "it once",
            stacklevel=3,
        )
        return
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        same = list(pool.map(lambda shard: _same(folder, shard), unknown))
    for shard, agrees in zip(unknown, same, strict=True):
        if not agrees and _readable(folder / shard["file"]):
            raise UsageError(
                f"shard {shard['file']} in {folder} holds other records than were "
                "written, of the same size; copy it again, or make the records in "
                "another folder"
            )
    remember(folder, shards, fingerprint)


def remember(
    folder: pathlib.Path, shards: Sequence[Mapping[str, Any]], fingerprint: str
) -> None:
    """Notes that the shards, as they are now, are those of the manifest."""
    cache = _cache_file(folder, fingerprint)
    with contextlib.suppress(OSError):  # without a home they are hashed again
        cache.parent.mkdir(parents=True, exist_ok=True)
        files.atomic_write(cache, json.dumps(_stats(folder, shards)))


def _stats(folder, shards) -> dict[str, list[int]]:
    """Size and time of change by file."""
    stats = {shard["file"]: (folder / shard["file"]).stat() for shard in shards}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _same(folder, shard) -> bool:
    return files.sha256_file(folder / shard["file"]) == shard["sha256"]


def _readable(path) -> bool:
    """Whether every record is whole: another file then, not a damaged one."""
    try:
        reader = record_files.open_shard(path)
        return all(reader.read([i]) for i in range(reader.num_records()))
    except (RuntimeError, IndexError, ValueError):
        open_files.check_readable(path)
        return False


def _cache_file(folder, fingerprint) -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    name = files.sha256_json([str(folder.resolve()), fingerprint])[:32]
    return pathlib.Path(root) / "unclip_jax" / "records" / f"{name}.json"


def _read(cache) -> dict[str, list[int]]:
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
