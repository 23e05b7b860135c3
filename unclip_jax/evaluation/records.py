"""What evaluations of a model on records of its own CLIP share."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.data.sources import make_source
from unclip_jax.errors import UsageError
from unclip_jax.generation import UnCLIP
from unclip_jax.versions import versions


@dataclasses.dataclass(frozen=True)
class RecordsConfig:
    """The config of such an evaluation."""

    model: str  # folder of an export with a CLIP
    data: dict[str, Any]  # records of that CLIP: source="records", path=...
    count: int  # examples, drawn from the data by the seed
    seed: int = 0  # of the draw and of all noise


def open_records(data: Mapping[str, Any], images: bool = False) -> Any:
    """The source that `data` names; UsageError if it lacks embeddings or images."""
    source = make_source(data)
    if getattr(source, "manifest", {}).get("clip_fingerprint") is None:
        raise UsageError(
            f"config.data.source {data['source']!r} has no embeddings: make records "
            "with `python -m unclip_jax.embed`"
        )
    if images and source.image_size is None:
        raise UsageError(f"the records in {data['path']} have no images")
    return source


def check_clip(source: Any, records: str, model: Any, export: str) -> str:
    """The fingerprint of the CLIP that records and a model (an UnCLIP) share.

    `records` and `export` are their folders. Raises UsageError if it is not the same.
    """
    theirs = source.manifest["clip_fingerprint"]
    own = model.stack.part("clip").clip_fingerprint
    if own != theirs:
        raise UsageError(
            f"the records in {records} are of the CLIP {theirs[:12]}..., {export} has "
            f"{own[:12]}...: embed the data with that export"
        )
    return theirs


def read_examples(
    config: RecordsConfig,
    parts: tuple[str, ...],
    batch_size: int,
    model: Any = None,
    images: bool = False,
) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """Reads the model, the examples, and what the results say of both.

    Args:
      config: of the evaluation.
      parts: of the model, to load.
      batch_size: of the model.
      model: an UnCLIP to use instead of loading config.model.
      images: whether the examples must have images.

    Raises:
      UsageError, FileNotFoundError: fewer examples than `count`, records of another
        CLIP, without embeddings or images, an export without these parts.
    """
    source = open_records(config.data, images)
    if config.count > len(source):
        raise UsageError(
            f"config.count = {config.count}, but the data has {len(source)} examples"
        )
    model = model or UnCLIP.load(config.model, parts=parts, batch_size=batch_size)
    clip = check_clip(source, config.data["path"], model, config.model)
    random = np.random.default_rng(config.seed)
    rows = np.sort(random.choice(len(source), config.count, replace=False))
    about = {
        "n": config.count,
        "config": config_lib.to_plain(config),
        "data_fingerprint": source.fingerprint,
        "clip_fingerprint": clip,
        "versions": versions(),
    }
    return model, [source[int(i)] for i in rows], about


def write_results(
    path: pathlib.Path, results: Mapping[str, Any], log: Callable[[str], None]
) -> None:
    """Writes a file of results, whole or absent; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    files.atomic_write(path, text)
    log(f"written: {path}")
