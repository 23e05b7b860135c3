"""Where the samples of many tars lie: found once, kept as one memory-mapped file.

The file's name holds a hash of the tars' names, sizes and times, so that an index of
other tars is never taken for theirs. Memory stays flat: the pages in use are the
system's.
"""

import collections
import json
import pathlib
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.images import SUFFIXES

TEXTS = (".txt", ".json")  # the first one found counts
COLUMNS = [
    ("tar", np.uint32),
    ("image_at", np.int64),
    ("image_size", np.int64),
    ("text_at", np.int64),
    ("text_size", np.int64),
    ("is_json", np.bool_),
]
NO_IMAGE, NO_CAPTION = "no image in the tar", "no caption in the tar"


def open_index(tars, folder):
    """The index of some tars, read or made.

    Args:
      tars: their paths, in order.
      folder: where it is kept.

    Returns:
      (array, failed): an array of COLUMNS and "key" (bytes), an element a sample with a
      picture and a caption, in the tars' order; {reason: samples that lack one}.

    Raises:
      UsageError: damaged tars; PermissionError: it cannot be written.
    """
    folder = pathlib.Path(folder)
    stats = [file.stat() for file in tars]
    stamp = [
        (file.name, s.st_size, s.st_mtime_ns)
        for file, s in zip(tars, stats, strict=True)
    ]
    name = files.sha256_json(stamp)[:16]
    array_file = folder / f"tar-index-{name}.npy"
    note_file = array_file.with_suffix(".json")  # written last: both are whole
    if not note_file.is_file():
        array, failed = scan(tars)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files.atomic_write(array_file, lambda file: np.save(file, array))
            files.atomic_write(note_file, json.dumps(failed))
        except OSError as error:
            raise PermissionError(
                f"the index of the tars cannot be written into {str(folder)!r} "
                f"({error}): set config.data.cache to another folder"
            ) from error
    failed = json.loads(note_file.read_text())
    return np.load(array_file, mmap_mode="r"), failed


def scan(tars):
    """(array, failed) of open_index, from the tars' headers."""
    damaged, parts, failed = [], [], collections.Counter()
    with ThreadPoolExecutor(8) as pool:  # waiting for disks, mostly
        for number, found in enumerate(pool.map(_scan_or_error, tars)):
            if isinstance(found, Exception):
                damaged.append(f"{tars[number]} ({found})")
                continue
            samples, missing = found
            failed.update(missing)
            parts.append(_as_array(number, samples))
    if damaged:
        more = f" and {len(damaged) - 10} more" if len(damaged) > 10 else ""
        raise UsageError(
            f"{len(damaged)} of {len(tars)} tars are damaged: "
            f"{'; '.join(damaged[:10])}{more}. Copy them again or move them away"
        )
    width = max(part.dtype["key"].itemsize for part in parts)
    dtype = [*COLUMNS, ("key", f"S{width}")]
    return np.concatenate([part.astype(dtype) for part in parts]), dict(failed)


def _as_array(number, samples):
    width = max((len(sample[-1]) for sample in samples), default=1)
    dtype = [*COLUMNS, ("key", f"S{width}")]
    return np.array([(number, *sample) for sample in samples], dtype)


def _scan_or_error(file):
    try:
        return scan_tar(file)
    except (tarfile.TarError, OSError, ValueError) as error:
        return error


def scan_tar(file):
    """([(image at, size, text at, size, is json, key)], {reason: count}) of one tar.

    Consecutive members whose names are alike up to the first dot are one sample.

    Raises tarfile.TarError or UsageError when the tar is damaged or compressed.
    """
    samples, failed = [], collections.Counter()
    current, parts = None, {}

    def close():
        if current is None:
            return
        image = next((parts[s] for s in SUFFIXES if s in parts), None)
        suffix = next((s for s in TEXTS if s in parts), None)
        if image is None or suffix is None:
            failed[NO_IMAGE if image is None else NO_CAPTION] += 1
            return
        samples.append(
            (*image, *parts[suffix], suffix == ".json", current.encode("utf-8"))
        )

    # "r:" does not unpack: offsets are those in the file
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore  # it keeps them all otherwise
            if not member.isfile():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if key != current:
                close()
                current, parts = key, {}
            parts["." + suffix.lower()] = (member.offset_data, member.size)
        close()
        end = tar.offset
    with open(file, "rb") as raw:
        raw.seek(end)
        if raw.read(512).strip(b"\0"):  # tarfile takes a damaged header for the end
            raise UsageError(f"no tar header at byte {end}")
    return samples, failed
