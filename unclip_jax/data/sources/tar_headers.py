"""The samples of a tar, from its headers alone, at a few microseconds a member.

POSIX.1-2001 (pax), ustar and GNU headers, as Python's tarfile reads them, which takes
ten times as long. A disk that answers at once is asked for the headers (AT_ONCE); from
one that does not (a bucket) a tar is better read whole, in large pieces (WAITING), than
waited for at each member.
"""

import collections
import os
import struct
import zlib
from collections.abc import Iterator, Sequence

from unclip_jax.errors import UsageError
from unclip_jax.images import SUFFIXES

TEXTS = (".txt", ".json")
NO_IMAGE, NO_CAPTION = "no image in the tar", "no caption in the tar"

AT_ONCE, WAITING = 1 << 15, 1 << 22  # bytes of a read

_BLOCK = 512
# name, size, checksum, type, prefix of the name
_HEADER = struct.Struct("100s 24x 12s 12x 8s c 188x 155s 12x")
_SIGNED = struct.Struct("148b 8x 356b")  # some old programs sum signed bytes
_FILES, _WITHOUT_DATA = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")
_LONG_NAME, _LONG_LINK, _SPARSE = b"L", b"K", b"S"
_PAX, _PAX_FOR_ALL = (b"x", b"X"), b"g"
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"(\xb5/\xfd": "unzstd",
}


def scan_tar(
    file: str | os.PathLike, texts: Sequence[str] = TEXTS, read_bytes: int = AT_ONCE
) -> tuple[list[tuple], collections.Counter]:
    """Returns ([(image at, size, text at, size, is json, key)], {reason: count}).

    Members whose names are alike up to the first dot are one sample, wherever in the
    tar they are; of two of one name the later one counts, as when it is unpacked.

    Args:
      file: path of the tar.
      texts: suffixes of captions; of a sample that has several, the first counts.
      read_bytes: AT_ONCE or WAITING.

    Raises UsageError when the tar is damaged or compressed.
    """
    samples: dict[bytes, list] = {}  # key -> [suffix, offset, size, suffix, ...]
    with open(file, "rb", buffering=0) as opened:
        for name, at, size in _members(opened.fileno(), read_bytes):
            folder, _, base = name.rpartition(b"/")
            stem, _, suffix = base.partition(b".")
            if not stem and suffix[:1] == b"_":  # macOS adds ._name
                continue
            key = b"%b/%b" % (folder, stem) if folder else stem
            if key in samples:
                samples[key] += (suffix, at, size)
            else:
                samples[key] = [suffix, at, size]
    rows, failed = [], collections.Counter()
    choices: dict[tuple, tuple] = {}  # most samples have the same members
    for key, members in samples.items():
        kinds = tuple(members[::3])
        if kinds not in choices or 0 in members[2::3]:
            sizes = members[2::3]
            choice = _choose(kinds, sizes, SUFFIXES), _choose(kinds, sizes, texts)
            if 0 not in sizes:
                choices[kinds] = choice
        else:
            choice = choices[kinds]
        (image, _), (text, suffix) = choice
        if image is None or text is None:
            failed[NO_IMAGE if image is None else NO_CAPTION] += 1
            continue
        image, text = 3 * image, 3 * text
        rows.append(
            (
                *members[image + 1 : image + 3],
                *members[text + 1 : text + 3],
                suffix == ".json",
                key,
            )
        )
    return rows, failed


def has_member(descriptor: int, key: bytes, at: int, size: int) -> bool:
    """Returns whether a member of a sample has its bytes there; of long names, any."""
    block = os.pread(descriptor, _BLOCK, at - _BLOCK) if at >= _BLOCK else b""
    if len(block) < _BLOCK:
        return False
    name, size_field, *_ = _HEADER.unpack(block)
    base = key.rpartition(b"/")[2]
    return _number(size_field) == size and (len(key) > 90 or base in name)


def _choose(kinds, sizes, suffixes) -> tuple[int | None, str | None]:
    """(number, suffix) of the member that counts as one of the suffixes, or Nones.

    Empty members count only where there is no other; "a.left.jpg" is a .jpg where there
    is no "a.jpg".
    """
    names = ["." + kind.decode("utf-8", "surrogateescape").lower() for kind in kinds]
    last = {name: number for number, name in enumerate(names)}
    candidates = [
        (sizes[number] == 0, name != suffix, order, number, suffix)
        for name, number in last.items()
        for order, suffix in enumerate(suffixes)
        if name.endswith(suffix)
    ]
    return min(candidates)[3:] if candidates else (None, None)


def _members(descriptor: int, read_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, offset, size) of every regular file, in the tar's order."""
    length, window = os.fstat(descriptor).st_size, _Window(descriptor, read_bytes)
    start = window.read(0, 6)
    for magic, tool in _COMPRESSED.items():
        if start.startswith(magic):
            raise UsageError(f"it is compressed: unpack it with {tool} first")
    if not length:
        raise UsageError("it is empty")
    at, long_name = 0, b""
    pax: dict[bytes, bytes] = {}
    unpack, adler32 = _HEADER.unpack, zlib.adler32
    while True:
        first = at - window.at
        block = window.data[first : first + _BLOCK]
        if len(block) < _BLOCK and len(block := window.read(at, _BLOCK)) < _BLOCK:
            break
        name, size_field, checksum, kind, prefix = unpack(block)
        try:
            size, stated = int(size_field[:11], 8), int(checksum[:6], 8)
        except ValueError:
            size, stated = _number(size_field), _number(checksum)
        # the sum of all bytes, those of the checksum as spaces; adler32 has it + 1
        total = (adler32(block) & 0xFFFF) - sum(checksum) + 255
        if stated <= 0 or size < 0:
            break
        if (total - stated) % 65521 and sum(_SIGNED.unpack(block)) + 256 != stated:
            break
        data = at + _BLOCK
        at = data if kind in _WITHOUT_DATA else data - -size // _BLOCK * _BLOCK
        if kind in _FILES:
            name = name.partition(b"\0")[0]
            if prefix[0]:
                name = b"%b/%b" % (prefix.partition(b"\0")[0], name)
            if pax or long_name:
                if b"size" in pax:
                    size = int(pax[b"size"])
                    at = data - -size // _BLOCK * _BLOCK
                name = pax.get(b"path", long_name or name).rstrip(b"/")
                pax, long_name = {}, b""
            elif name[-1:] == b"/":  # a folder, of very old programs
                continue
            yield name, data, size
        elif kind in _PAX:
            pax = _read_pax(window.read(data, size))
        elif kind == _LONG_NAME:
            long_name = window.read(data, size).partition(b"\0")[0]
        elif kind == _SPARSE:
            raise UsageError(_IS_SPARSE)
        elif kind not in (_LONG_LINK, _PAX_FOR_ALL):
            pax, long_name = {}, b""
    if at > length:
        raise UsageError("unexpected end of data")
    _check_end(descriptor, at)


_IS_SPARSE = "it has sparse files: unpack and pack it again without --sparse"


def _number(field: bytes) -> int:
    """A number of a header, octal or (GNU) in base 256; -1 for none."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return -1


def _read_pax(data: bytes) -> dict[bytes, bytes]:
    """The path and size of a pax header, whose records are "LENGTH KEY=VALUE\\n"."""
    records = {}
    if b" path=" not in data and b" size=" not in data and b"GNU.sparse" not in data:
        return records  # times, most often
    while data and data[0]:
        digits = data.partition(b" ")[0]
        if not digits.isdigit() or int(digits) < 5:
            raise UsageError("a pax header is damaged")
        length = int(digits)
        keyword, _, value = data[len(digits) + 1 : length].partition(b"=")
        if keyword.startswith(b"GNU.sparse"):
            raise UsageError(_IS_SPARSE)
        if keyword == b"size" and not value[:-1].isdigit():
            raise UsageError("a pax header is damaged")
        if keyword in (b"path", b"size"):
            records[keyword] = value[:-1]
        data = data[length:]
    return records


class _Window:
    """Reads a file forwards, a few headers at a time."""

    def __init__(self, descriptor: int, length: int):
        self._descriptor, self._length = descriptor, length
        self.at, self.data = 0, b""

    def read(self, at: int, size: int) -> bytes:
        """`size` bytes, fewer where the file ends."""
        first = at - self.at
        if first < 0 or first + size > len(self.data):
            self.data = os.pread(self._descriptor, max(size, self._length), at)
            self.at, first = at, 0
        return self.data[first : first + size]


def _check_end(descriptor: int, end: int) -> None:
    """Nothing but zeros may follow: a damaged header looks like the end."""
    offset = end
    while block := os.pread(descriptor, 1 << 20, offset):
        if block.strip(b"\0"):
            if offset == end and block[:_BLOCK].strip(b"\0"):
                raise UsageError(f"no tar header at byte {end}")
            raise UsageError(
                f"more follows behind its end mark at byte {end}, as in tars joined by "
                "`cat`: unpack and pack them again"
            )
        offset += len(block)
