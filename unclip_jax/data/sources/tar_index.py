"""Where the samples of many tars lie: found once, kept as one memory-mapped file.

The file's name holds a hash of the tars' names, sizes and times, so that an index of
other tars is never taken for theirs. Memory stays flat: the pages in use are the
system's.
"""

import collections
import json
import logging
import pathlib
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.images import SUFFIXES

TEXTS = (".txt", ".json")
logger = logging.getLogger(__name__)

_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"(\xb5/\xfd": "unzstd",
}
COLUMNS = [
    ("tar", np.uint32),
    ("image_at", np.int64),
    ("image_size", np.int64),
    ("text_at", np.int64),
    ("text_size", np.int64),
    ("is_json", np.bool_),
]
NO_IMAGE, NO_CAPTION = "no image in the tar", "no caption in the tar"
VERSION = 2  # of what a scan finds in the same tars


def open_index(tars, folders, texts=TEXTS):
    """Returns the index of some tars, read or made.

    Args:
      tars: their paths, in order.
      folders: where it may be; it is written into the first that takes it.
      texts: suffixes of captions; of a sample that has several, the first counts.

    Returns:
      (array, failed): an array of COLUMNS and "key" (bytes), an element a sample
      with an image and a caption, in the tars' order; {reason: samples that lack one}.

    Raises:
      UsageError: damaged tars; PermissionError: it cannot be written.
    """
    stats = [file.stat() for file in tars]
    stamp = [
        (file.name, s.st_size, s.st_mtime_ns)
        for file, s in zip(tars, stats, strict=True)
    ]
    name = f"tar-index-{files.sha256_json([VERSION, texts, stamp])[:16]}"
    # the .json is written last: where it is, both are whole
    places = [pathlib.Path(folder, f"{name}.npy") for folder in folders]
    done = [place for place in places if place.with_suffix(".json").is_file()]
    place = done[0] if done else _write_index(*scan(tars, texts), places)
    failed = json.loads(place.with_suffix(".json").read_text())
    return np.load(place, mmap_mode="r"), failed


def _write_index(array, failed, places) -> pathlib.Path:
    errors = []
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            files.atomic_write(place, lambda file: np.save(file, array))
            files.atomic_write(place.with_suffix(".json"), json.dumps(failed))
        except OSError as error:
            errors.append(error)
            continue
        if errors:
            logger.warning("%s; the index of the tars is kept in %s", errors[0], place)
        return place
    raise PermissionError(
        f"the index of the tars cannot be written into {str(places[0].parent)!r} "
        f"({errors[0]}): set config.data.cache to another folder"
    )


def scan(tars, texts=TEXTS):
    """Returns (array, failed) of open_index, from the tars' headers."""
    damaged, parts, failed = [], [], collections.Counter()

    def scan_or_error(file):
        try:
            return scan_tar(file, texts)
        except (tarfile.TarError, OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(8) as pool:  # waiting for disks, mostly
        for number, result in enumerate(pool.map(scan_or_error, tars)):
            if isinstance(result, Exception):
                damaged.append(f"{tars[number]} ({result})")
                continue
            samples, missing = result
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


def scan_tar(file, texts=TEXTS):
    """Returns ([(image at, size, text at, size, is json, key)], {reason: count}).

    Members whose names are alike up to the first dot are one sample, wherever in the
    tar they are; of two of one name the later one counts, as when it is unpacked.

    Raises tarfile.TarError or UsageError when the tar is damaged or compressed.
    """
    members: dict[str, dict[str, tuple[int, int]]] = {}
    with open(file, "rb") as raw:
        start = raw.read(6)
        for magic, tool in _COMPRESSED.items():
            if start.startswith(magic):
                raise UsageError(f"it is compressed: unpack it with {tool} first")
        # "r:" does not unpack: offsets are those in the file
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore  # it keeps them all otherwise
                folder, _, name = member.name.rpartition("/")
                if not member.isfile() or name.startswith("._"):  # macOS adds those
                    continue
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                place = member.offset_data, member.size
                members.setdefault(key, {})["." + suffix.lower()] = place
            end = tar.offset
        _check_end(raw, end)
    samples, failed = [], collections.Counter()
    for key, parts in members.items():
        image, _ = _choose(parts, SUFFIXES)
        text, suffix = _choose(parts, texts)
        if image is None or text is None:
            failed[NO_IMAGE if image is None else NO_CAPTION] += 1
            continue
        name = key.encode("utf-8", "surrogateescape")
        samples.append((*image, *text, suffix == ".json", name))
    return samples, failed


def _choose(parts, suffixes):
    """(place, suffix) of the first of the suffixes that a sample has, or Nones.

    Empty members count only where there is no other; "a.left.jpg" is a .jpg where there
    is no "a.jpg".
    """
    candidates = [
        (place[1] == 0, name != suffix, order, place, suffix)
        for order, suffix in enumerate(suffixes)
        for name, place in parts.items()
        if name.endswith(suffix)
    ]
    return min(candidates)[3:] if candidates else (None, None)


def _check_end(raw, end) -> None:
    """Nothing but zeros may follow: tarfile takes a damaged header for the end."""
    raw.seek(end)
    offset = end
    while block := raw.read(1 << 20):
        if block.strip(b"\0"):
            if offset == end and block[:512].strip(b"\0"):
                raise UsageError(f"no tar header at byte {end}")
            raise UsageError(
                f"more follows behind its end mark at byte {end}, as in tars joined by "
                "`cat`: unpack and pack them again"
            )
        offset += len(block)
