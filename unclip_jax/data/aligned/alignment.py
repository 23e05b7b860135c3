"""Which rows of several arrays belong together, and which are left out."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterator

import numpy as np

from unclip_jax.data.aligned.config import AlignConfig, ConditionConfig
from unclip_jax.data.aligned.tables import open_numbers, open_texts
from unclip_jax.errors import UsageError

CHUNK_BYTES = 64 << 20  # rows that are looked at together


@dataclasses.dataclass
class Column:
    """An array of examples, the target or a condition.

    Attributes:
      name, options: what it is called, and its ConditionConfig (None: the target).
      array: (rows of the file, ...).
      mask: bool of a sequence or of repeats, (rows of the file, L), or None.
      kind: see models/conditions.py; "vector" or "grid" of a target.
      size: tokens or classes, or None.
      rows: (n,) the file's row of each row of the target, -1 for none.
      unused: rows of the file that belong to no target.
      present: (n,) bool, of what is there and finite.
    """

    name: str
    options: ConditionConfig | None
    array: np.ndarray
    mask: np.ndarray | None
    kind: str
    size: int | None
    rows: np.ndarray
    unused: int = 0
    present: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))


@dataclasses.dataclass
class Alignment:
    """Columns, and what of the target's rows is used.

    Attributes:
      columns: the target first.
      keys: (n,) texts, one per row of the target.
      keep: (n,) bool, of examples that are used.
      left_out: {reason: how many}.
      splits: {name: (m,) rows of the target}.
    """

    columns: list[Column]
    keys: np.ndarray
    keep: np.ndarray
    left_out: dict[str, int]
    splits: dict[str, np.ndarray]


def chunks(array: np.ndarray, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(slice of `rows`, their values) of some rows, as many as fit CHUNK_BYTES."""
    row_bytes = max(array.itemsize * int(np.prod(array.shape[1:])), 1)
    size = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        yield part, np.asarray(array[rows[part]])


def align(config: AlignConfig) -> Alignment:
    """Opens the arrays and finds the rows that belong together.

    Raises:
      UsageError, FileNotFoundError: files that cannot be read, lengths that differ
        without keys, keys that are there twice or match nothing, a condition that is
        missing everywhere, no example left.
    """
    array = open_numbers(config.target.path, "config.target")
    if array.dtype.kind != "f" or array.ndim not in (2, 3):
        raise UsageError(
            f"config.target: {config.target.path} is {array.dtype} {array.shape}, "
            "expected floats (n, D) or (n, N, D)"
        )
    kind = "vector" if array.ndim == 2 else "grid"
    everything = np.arange(len(array))
    target = Column("target", None, array, None, kind, None, everything)
    keys = _keys(config.target.keys, len(array), "config.target")
    columns = [target]
    for name, options in config.condition_options().items():
        columns.append(_condition(name, options, config.target.path, keys, len(array)))
    keep = np.ones(len(array), bool)
    left_out: collections.Counter[str] = collections.Counter()
    for column in columns:
        column.present = _present(column)
        if not column.present[keep].any():
            what = "is missing from, or not finite in, every example"
            raise UsageError(f"{_where(column)} {what}: {_paths(column, config)}")
        if column.options and column.options.missing:
            continue
        absent, there = column.rows < 0, column.present
        for reason, bad in (
            (f"{column.name} is missing", absent),
            (f"{column.name} is not finite or empty", ~there & ~absent),
        ):
            if count := int((bad & keep).sum()):
                left_out[reason] += count
            keep &= ~bad
    if not keep.any():
        raise UsageError(f"no example is left: {dict(left_out)}")
    names = np.arange(len(array)).astype(str) if keys is None else keys
    splits = _splits(config, names, keep)
    return Alignment(columns, names, keep, dict(left_out), splits)


def _where(column):
    return "config.target" if column.options is None else (f"condition {column.name!r}")


def _paths(column, config):
    return column.options.path if column.options else config.target.path


def _keys(name, count, where):
    if not name:
        return None
    keys = open_texts(name, f"{where}.keys")
    if len(keys) != count:
        raise UsageError(
            f"{where}: {len(keys):,} keys in {name}, but {count:,} rows of numbers"
        )
    counts = collections.Counter(keys.tolist())
    if repeated := [key for key, n in counts.items() if n > 1]:
        raise UsageError(
            f"{where}: {len(repeated):,} keys are in {name} more than once, e.g. "
            f"{repeated[0]!r}; give each row its own, or measurements of one thing as "
            "(n, R, D) with repeats=True"
        )
    return keys


def _condition(name, options, target_path, keys, count) -> Column:
    where = f"config.conditions.{name}"
    array = open_numbers(options.path, where)
    rows, unused = _rows(name, options, target_path, keys, count, len(array))
    kind, size = _kind(array, options, where), None
    mask = None
    if options.mask:
        if kind not in ("sequence", "repeats"):
            raise UsageError(f"{where}.mask is for sequences and repeats, not a {kind}")
        mask = open_numbers(options.mask, f"{where}.mask")
        if mask.shape != array.shape[:2]:
            raise UsageError(
                f"{where}.mask: {options.mask} is {mask.shape}, expected "
                f"{array.shape[:2]}"
            )
    if kind in ("tokens", "class"):
        largest = max(
            int(part.max()) for _, part in chunks(array, np.arange(len(array)))
        )
        size = options.size or largest + 1
        if largest >= size or largest < 0:
            raise UsageError(
                f"{where}: the largest number in {options.path} is {largest}, expected "
                f"0 to {size - 1} (negative where there is none)"
            )
    elif options.size:
        raise UsageError(f"{where}.size is for tokens and classes, not a {kind}")
    return Column(name, options, array, mask, kind, size, rows, unused)


def _kind(array, options, where):
    floats = array.dtype.kind == "f"
    kinds = {
        (True, 2): "vector",
        (True, 3): "repeats" if options.repeats else "sequence",
        (False, 1): "class",
        (False, 2): "tokens",
    }
    kind = kinds.get((floats, array.ndim))
    if kind is None or (options.repeats and kind != "repeats"):
        raise UsageError(
            f"{where}: {options.path} is {array.dtype} {array.shape}; expected floats "
            "(n, D) or (n, L, D), or whole numbers (n,) or (n, L); with repeats=True "
            "floats (n, R, D)"
        )
    return kind


def _rows(name, options, target_path, keys, count, own_count):
    """((n,) rows of the condition's file, how many belong to no target)."""
    where = f"config.conditions.{name}"
    if not options.keys:
        if own_count != count:
            raise UsageError(
                f"{where}: {options.path} has {own_count:,} rows and {target_path} "
                f"{count:,}: give both keys, or arrays of one length"
            )
        return np.arange(count), 0
    if keys is None:
        raise UsageError(f"{where} has keys, config.target has none: give both")
    own = _keys(options.keys, own_count, where)
    assert own is not None
    numbers = {key: i for i, key in enumerate(own.tolist())}
    rows = np.array([numbers.get(key, -1) for key in keys.tolist()])
    if (rows < 0).all():
        raise UsageError(
            f"{where}: none of the keys in {options.keys} is one of the target's; "
            f"e.g. {str(own[0])!r} there and {str(keys[0])!r} here"
        )
    return rows, own_count - int((rows >= 0).sum())


def _present(column) -> np.ndarray:
    """(n,) bool: rows that are there, finite, and not masked everywhere."""
    there = column.rows >= 0
    rows = np.flatnonzero(there)
    for part, values in chunks(column.array, column.rows[rows]):
        if column.kind == "class":
            fine = values >= 0
        elif column.kind == "tokens":
            fine = (values >= 0).any(1)
        else:
            finite = np.isfinite(values)
            some = True
            if column.mask is not None:
                mask = np.asarray(column.mask[column.rows[rows[part]]]).astype(bool)
                finite |= ~mask[..., None]
                some = mask.any(1)
            fine = finite.reshape(len(values), -1).all(1) & some
        there[rows[part]] = fine
    return there


def _splits(config, keys, keep) -> dict[str, np.ndarray]:
    count = len(keys)
    if config.split_names:
        names = open_texts(config.split_names, "config.split_names")
        if len(names) != count:
            raise UsageError(
                f"config.split_names: {len(names):,} in {config.split_names}, the "
                f"target has {count:,} rows"
            )
        if odd := [name for name in set(names) if not re.fullmatch(r"[\w-]+", name)]:
            raise UsageError(
                f"config.split_names: {odd[0]!r} names no folder; expected letters, "
                "digits, underscores and hyphens"
            )
        found = {name: np.flatnonzero(keep & (names == name)) for name in set(names)}
    else:
        units = keys
        if config.groups:
            units = open_texts(config.groups, "config.groups")
            if len(units) != count:
                raise UsageError(
                    f"config.groups: {len(units):,} in {config.groups}, the target has "
                    f"{count:,} rows"
                )
        numbers = np.array([_uniform(config.seed, unit) for unit in units.tolist()])
        found, start = {}, 0.0
        for name, fraction in config.splits.items():
            end = start + fraction
            inside = (start <= numbers) & (numbers < end + (1e-9 if end > 0.999 else 0))
            found[name], start = np.flatnonzero(keep & inside), end
    if empty := [name for name, rows in found.items() if not len(rows)]:
        raise UsageError(
            f"split {empty[0]!r} is empty: {int(keep.sum()):,} examples are left, in "
            f"{', '.join(f'{name} {len(rows):,}' for name, rows in found.items())}"
        )
    return dict(sorted(found.items()))


def _uniform(seed, text) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.sha256(f"{seed}/{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
