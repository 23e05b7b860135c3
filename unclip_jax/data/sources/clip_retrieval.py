"""Embeddings that clip-retrieval made: a prior can be trained without any image.

    config.data = dict(source="clip_retrieval", path="data/laion-embeddings")

The folder holds img_emb/img_emb_0.npy ..., metadata/metadata_0.parquet ... with a
column of captions, and text_emb/text_emb_0.npy ... if texts were embedded too.
`python -m unclip_jax.embed` writes them as records; config.clip must be the same CLIP:
its tokenizer is needed, and clip-retrieval's text embeddings, which have lost their
norms, are made again (text_emb only proves that it is the same CLIP).
"""

import bisect
import contextlib
import functools
import hashlib
import itertools
import pathlib
import re
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from unclip_jax.data.sources import BadRecord, LeftOut
from unclip_jax.data.sources.image_source import clean_caption
from unclip_jax.errors import UsageError
from unclip_jax.files import NUMPY_DAMAGE

FOLDERS = {"image": "img_emb", "text": "text_emb", "metadata": "metadata"}
KEYS = ("image_path", "key", "__key__", "id")


class ClipRetrieval:
    """A source of embeddings (see the module): it has "clip_image" and no "image".

    Attributes:
      embed_dim: width of the embeddings.
      embedding_convention: "unit" when they have norm 1, else "raw".
      image_size: None.
      fingerprint: str.
    """

    image_size = None

    def __init__(self, path: str, caption: str = "caption"):
        """Checks that the parts fit together.

        Raises:
          FileNotFoundError: no such folders.
          UsageError: parts without their counterparts, or of other numbers of rows.
        """
        self._caption = caption
        root = pathlib.Path(path)
        parts = {what: _numbered(root / name) for what, name in FOLDERS.items()}
        if not parts["image"] or not parts["metadata"]:
            raise FileNotFoundError(
                f"{str(path)!r} holds no output of clip-retrieval: expected "
                "img_emb/img_emb_0.npy and metadata/metadata_0.parquet"
            )
        _check_numbers(parts)
        self._parts, counts, digest = [], [], hashlib.sha256()
        for number, file in sorted(parts["image"].items()):
            part = {"image": _open_array(file)}
            if parts["text"]:
                part["text"] = _open_array(parts["text"][number])
            part["metadata"] = parts["metadata"][number]
            rows = {what: len(part[what]) for what in part if what != "metadata"}
            rows["metadata"] = _open_table(part["metadata"], caption).metadata.num_rows
            if len(set(rows.values())) > 1:
                told = ", ".join(f"{FOLDERS[w]} {n:,}" for w, n in rows.items())
                raise UsageError(
                    f"part {number} of {path} is misaligned: {told} rows; make it again"
                )
            self._parts.append(part)
            counts.append(rows["image"])
            digest.update(f"{number},{rows['image']};".encode())
            digest.update(np.ascontiguousarray(part["image"][:16]).tobytes())
        widths = {
            part[w].shape[1]
            for part in self._parts
            for w in ("image", "text")
            if w in part
        }
        if len(widths) > 1:
            raise UsageError(f"{path}: embeddings of several widths, {sorted(widths)}")
        (self.embed_dim,) = widths
        self._ends = list(itertools.accumulate(counts))
        self.embedding_convention = _convention(p["image"] for p in self._parts)
        digest.update(caption.encode())
        self.fingerprint = digest.hexdigest()
        self._table = functools.lru_cache(maxsize=4)(self._read_table)

    def __len__(self):
        return self._ends[-1]

    def __getitem__(self, i: int) -> dict:
        """{"key", "caption", "clip_image" float32 (D,), "clip_text" if there is one}.

        Raises IndexError, or BadRecord for what is not finite or has no caption.
        """
        number, row = self._find(i)
        part = self._parts[number]
        keys, captions = self._table(number)
        key = f"{number}-{row}" if keys is None else str(keys[row].as_py())
        caption = clean_caption(captions[row].as_py(), key)
        if not caption:
            raise LeftOut(key, "no caption")
        example: dict[str, Any] = {"key": key, "caption": caption}
        for what in ("image", "text"):
            if what in part:
                vector = part[what][row].astype(np.float32)
                if not np.isfinite(vector).all():
                    raise BadRecord(key, f"its {what} embedding is not finite")
                if self.embedding_convention == "unit" and not vector.any():
                    raise BadRecord(key, f"its {what} embedding is zero")
                example[f"clip_{what}"] = vector
        return example

    def captions(self, n: int | None = None) -> list[str]:
        """The captions of the first n examples (None: of all)."""
        found = []
        for i in range(len(self) if n is None else min(n, len(self))):
            number, row = self._find(i)
            with contextlib.suppress(BadRecord):
                found.append(clean_caption(self._table(number)[1][row].as_py(), ""))
        return [caption for caption in found if caption]

    def _find(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        number = bisect.bisect_right(self._ends, i)
        return number, int(i) - (self._ends[number] - len(self._parts[number]["image"]))

    def _read_table(self, number):
        """(keys or None, captions) of a part's metadata."""
        opened = _open_table(self._parts[number]["metadata"], self._caption)
        key = next((k for k in KEYS if k in opened.schema_arrow.names), None)
        table = opened.read(columns=[self._caption, *([key] if key else [])])
        table = table.combine_chunks()
        return table[key] if key else None, table[self._caption]


def _convention(parts) -> str:
    """Whether the first thousand embeddings, but for zeros, have norm 1."""
    norms, count = [], 0
    for part in parts:
        norm = np.linalg.norm(part[: 1000 - count].astype(np.float32), axis=1)
        norms.append(norm[np.isfinite(norm) & (norm > 0)])
        count += len(norms[-1])
        if count >= 1000:
            break
    is_unit = count > 0 and np.allclose(np.concatenate(norms), 1, atol=0.01)
    return "unit" if is_unit else "raw"


def _numbered(folder) -> dict[int, pathlib.Path]:
    """{number: file} of name_0.npy or name_0.parquet."""
    files = folder.glob("*_*[0-9].*") if folder.is_dir() else ()
    found = {}
    for file in files:
        if match := re.search(r"_(\d+)\.(npy|parquet)$", file.name):
            found[int(match[1])] = file
    return found


def _check_numbers(parts) -> None:
    for what in ("text", "metadata"):
        if not parts[what]:
            continue
        odd = sorted(set(parts["image"]) ^ set(parts[what]))
        if odd:
            raise UsageError(
                f"img_emb has {len(parts['image'])} parts and {FOLDERS[what]} "
                f"{len(parts[what])}; without a counterpart: {odd[:10]}"
            )


def _open_array(file):
    try:
        array = np.load(file, mmap_mode="r")
    except NUMPY_DAMAGE as error:
        raise UsageError(f"{file} is damaged ({error})") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UsageError(
            f"{file}: expected floats (N, D), got {array.dtype} {array.shape}"
        )
    return array


def _open_table(file, caption):
    try:
        opened = parquet.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file} is damaged ({error})") from error
    names = opened.schema_arrow.names
    if caption not in names:
        raise UsageError(f"{file} has no column {caption!r}, only {', '.join(names)}")
    return opened
