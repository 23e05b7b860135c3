"""The native export: a folder of safetensors and json that describes itself.

    unclip.json                     format, version, and for each part its files
    clip/config.json                with their sha256, and the CLIP it belongs to
    clip/model.safetensors          tensors named by their '/'-joined path
    prior/... decoder/... tokenizer/...
    decoder/analytic.json           if unclip_jax.estimate_variance has been run

A part is written beside the old one and renamed; unclip.json is replaced last. Nothing
is pickled, and nothing but numpy is needed to read it.
"""

import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.files import read_json, sha256_file, sync, write_json
from unclip_jax.interop.weights import (
    hash_tensors,
    is_float,
    read_tensors,
    write_tensors,
)
from unclip_jax.tokenizer import copy_tokenizer

FORMAT = "unclip_jax"
VERSION = 1
INDEX = "unclip.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PARTS = ("clip", "prior", "ar_prior", "decoder")
# parts upsampler_64, upsampler_256, ... by resolution; upsampler_256_last is a second
# network that takes the final step of upsampler_256 (Karlo's super-resolution)
KINDS = (*PARTS, "upsampler", "autoencoder")
# priors of any encoder's embeddings, which are no parts of a stack: generation.Prior
EMBEDDING_PRIORS = ("embedding_prior", "embedding_regression")
LAST = "_last"
# a weaker decoder, which guides the part "decoder"; see diffusion.guidance
GUIDE = "decoder_guide"
TEXT_ENCODER = "text_encoder"
TOKENIZER = "tokenizer"
ANALYTIC = "analytic.json"  # of a part: see write_analytic
STATISTICS = "statistics"  # of the CLIP embeddings that prior and decoder learnt from


def kind_of(part: str) -> str:
    """What a part holds: "upsampler" in "upsampler_256", else what its name says.

    "text_encoder" is a CLIP's text tower, whose states the decoder sees in place of
    those of the part "clip".
    """
    if part == TEXT_ENCODER:
        return "clip"
    if part == GUIDE:
        return "decoder"
    return "upsampler" if re.fullmatch(rf"upsampler_\d+({LAST})?", part) else part


def is_export(folder: str | os.PathLike) -> bool:
    """Whether `folder` holds a native export."""
    return (pathlib.Path(folder) / INDEX).is_file()


def clip_fingerprint(config: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """sha256 over a CLIP's config and its tensors as little-endian float32.

    Records, prior and decoder carry it, so that embeddings of two CLIPs never mix.
    """
    return hash_tensors(_json(config_lib.to_plain(config)), leaves(params))


def autoencoder_fingerprint(
    config: Mapping[str, Any], params: Mapping[str, Any]
) -> str:
    """The same of an autoencoder, of whose config the scale of latents counts.

    Of the tensors as float16, so that files of half precision are the same autoencoder.
    Records and decoders of latents carry it.
    """
    scale = float(config["model"].get("latent_scale", 1.0))
    with np.errstate(over="ignore"):
        half = [(name, np.asarray(a).astype(np.float16)) for name, a in leaves(params)]
    return hash_tensors(f"latent_scale {scale!r}", half)


def write_part(
    folder: str | os.PathLike,
    part: str,
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    meta: Mapping[str, Any],
    dtype: str | None = None,
) -> None:
    """Adds or replaces a part of the export in `folder` (made if missing).

    No more than one tensor is held in memory.

    Args:
      folder: the export.
      part: one of PARTS, or "upsampler_" and the side of the pictures it makes.
      config: what rebuilds the module and its process (the stage's export config).
      params: nested dict of arrays, or of Lazy ones.
      meta: JSON-able; for priors and decoder `clip_fingerprint` names the CLIP whose
        embeddings they learnt from. For clip it is computed here.
      dtype: that floats are stored as, see weights.write_tensors.

    Raises:
      UsageError: unknown part, or a part of another CLIP than those in `folder`.
    """
    kind = kind_of(part)
    if kind not in (*KINDS, *EMBEDDING_PRIORS) or part == "upsampler":
        raise UsageError(
            f"export part {part!r}: expected one of {', '.join(PARTS)}, "
            f"upsampler_SIZE, autoencoder, {', '.join(EMBEDDING_PRIORS)}"
        )
    config, meta = config_lib.to_plain(config), config_lib.to_plain(meta)
    if part == "clip":
        meta["clip_fingerprint"] = clip_fingerprint(config, params)
    elif part == "autoencoder":
        meta["autoencoder_fingerprint"] = autoencoder_fingerprint(config, params)
    elif part in (*PARTS, GUIDE) and not meta.get("clip_fingerprint"):
        raise UsageError(
            f"the {part} does not say which CLIP's embeddings it learnt from: its meta "
            "lacks 'clip_fingerprint'; train it on records made by unclip_jax.embed"
        )
    flat = dict(leaves(params))
    entry = {
        "clip_fingerprint": meta.get("clip_fingerprint"),
        "tensors": len(flat),
        "parameters": sum(int(np.prod(array.shape)) for array in flat.values()),
    }
    index = _read_index(folder) if is_export(folder) else _empty_index()
    index["parts"][part] = entry
    _check_same_clip(folder, index)

    def write(new: pathlib.Path):
        described = {"part": part, "config": config, "meta": meta}
        write_json(new / CONFIG, described)
        write_tensors(new / WEIGHTS, flat, {"format": FORMAT}, dtype)

    _commit(folder, part, index, write)


def write_tokenizer(folder: str | os.PathLike, source: str | os.PathLike) -> None:
    """Copies the files of the tokenizer folder `source` into the export.

    Raises FileNotFoundError when `source` holds no files.
    """
    index = _read_index(folder) if is_export(folder) else _empty_index()
    index["parts"][TOKENIZER] = {}
    _commit(folder, TOKENIZER, index, lambda new: copy_tokenizer(source, new))


def write_statistics(
    folder: str | os.PathLike, mean: np.ndarray, cov: np.ndarray, unit: bool = False
) -> None:
    """Adds mean (D,) and covariance (D, D) of the training embeddings, as float64.

    `unit` says whether they are of the embeddings scaled to norm 1.
    """
    index = _read_index(folder)
    index["parts"][STATISTICS] = {}
    arrays = {"mean": np.asarray(mean, np.float64), "cov": np.asarray(cov, np.float64)}
    arrays["unit"] = np.asarray(unit, bool)

    def write(new: pathlib.Path):
        safetensors.numpy.save_file(arrays, new / WEIGHTS, {"format": FORMAT})

    _commit(folder, STATISTICS, index, write)


def read_statistics(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """{"mean", "cov", "unit"} as written; raises what `read_part` does.

    An older export has no "unit": its statistics are of embeddings as they are.
    """
    return read_tensors(part_folder(folder, STATISTICS) / WEIGHTS)


def write_analytic(
    folder: str | os.PathLike, part: str, table: Mapping[str, Any]
) -> None:
    """Adds to a part, or replaces, what analytic variance needs to know of it.

    Args:
      folder: the export.
      part: "prior" or "decoder". Exporting it again drops the table.
      table: JSON-able: "timesteps" and "means" (n each) as diffusion.analytic's
        `interpolate` takes them, and where they are from.

    Raises what `part_folder` does.
    """
    _replace_file(folder, part, ANALYTIC, table)


def write_config(
    folder: str | os.PathLike, part: str, config: Mapping[str, Any]
) -> None:
    """Replaces the config of a part, whose tensors stay; raises what read_part does."""
    described = read_json(part_folder(folder, part) / CONFIG, "")
    _replace_file(folder, part, CONFIG, {**described, "config": config})


def _replace_file(folder, part, name, content):
    """Adds to a part, or replaces, a JSON file of this content."""
    old, plain = part_folder(folder, part), config_lib.to_plain(content)

    def write(new: pathlib.Path):
        for file in old.iterdir():
            if file.name != name:
                _link(file, new / file.name)
        write_json(new / name, plain)

    _commit(folder, part, _read_index(folder), write)


def read_analytic(folder: str | os.PathLike, part: str) -> dict[str, Any] | None:
    """The table as written; None if the part has none. Raises what read_part does."""
    entry = read_index(folder)["parts"].get(part, {"files": {}})
    if ANALYTIC not in entry["files"]:
        return None
    _check_file(folder, part, ANALYTIC, entry["files"][ANALYTIC])
    return read_json(pathlib.Path(folder) / part / ANALYTIC, "")


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
    """unclip.json: {"format", "version", "parts": {name: {...}}}.

    Raises:
      FileNotFoundError: no export there.
      UsageError: another format or version, or parts of different CLIPs.
    """
    index = _read_index(folder)
    _check_same_clip(folder, index)
    return index


def read_part(
    folder: str | os.PathLike, part: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns (config, params as a nested dict of numpy arrays, meta).

    Floats that were stored as bfloat16 or float16 become float32.

    Raises:
      FileNotFoundError: no export, or it lacks the part (the message says which
        command makes it) or one of the part's files.
      UsageError: another format or version, a file that is not the one written.
    """
    path = part_folder(folder, part)
    described = read_json(path / CONFIG, "")
    _check_mappings(described, path / CONFIG, "config", "meta")
    clip = described["meta"].get("clip_fingerprint")
    if not (clip is None or isinstance(clip, str)):
        raise UsageError(f"{path / CONFIG}: clip_fingerprint is {clip!r}, no hash")
    flat = read_tensors(path / WEIGHTS)
    flat = {
        name: a.astype(np.float32) if is_float(a.dtype) and a.dtype.itemsize < 4 else a
        for name, a in flat.items()
    }
    try:
        params = unflatten(flat)
    except ValueError as error:
        raise UsageError(f"{path / WEIGHTS}: {error}") from error
    return described["config"], params, described["meta"]


def part_folder(folder: str | os.PathLike, part: str) -> pathlib.Path:
    """The folder of a part, once its files' sha256 have been checked.

    Raises what `read_part` does.
    """
    folder = pathlib.Path(folder)
    index = read_index(folder)
    if part not in index["parts"]:
        raise missing_part(folder, part, index["parts"])
    for name, expected in index["parts"][part]["files"].items():
        _check_file(folder, part, name, expected)
    return folder / part


def missing_part(folder, part: str, parts: Sequence[str]) -> FileNotFoundError:
    """The error for an export without `part`: says which command makes it."""
    run = {TOKENIZER: "clip", STATISTICS: "decoder"}.get(part, kind_of(part))
    have = ", ".join(sorted(parts)) or "nothing"
    return FileNotFoundError(
        f"{folder} has no {part} (it has {have}); add it with "
        f"`python -m unclip_jax.export --run=FOLDER_OF_THE_{run.upper()}_RUN "
        f"--out={folder}`"
    )


def flatten(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Nested dict of arrays -> {'/'-joined path: contiguous numpy array}."""
    # np.ascontiguousarray would turn scalars into vectors
    return {name: np.asarray(a, order="C") for name, a in leaves(params)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UsageError(f"tensor {name!r} lies below another tensor")
        node[leaf] = value
    return tree


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """('/'-joined path, leaf) of a nested dict."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _empty_index() -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "parts": {}}


def _read_index(folder) -> dict[str, Any]:
    path = pathlib.Path(folder) / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not an export: no {INDEX} in it; make one with "
            f"`python -m unclip_jax.export --run=RUN --out={folder}`"
        )
    index = read_json(path, "")
    _check_mappings(index, path, "parts")
    found = index.get("format"), index.get("version")
    if found != (FORMAT, VERSION):
        raise UsageError(
            f"{path} has format {found[0]!r}, version {found[1]!r}; this program reads "
            f"{FORMAT!r}, version {VERSION}: export again, or use the unclip_jax that "
            "wrote it"
        )
    parts = index["parts"]
    _check_mappings(parts, path, *parts)
    for part, entry in parts.items():
        _check_mappings(entry, path, "files")
        hashes = [*entry["files"].values(), entry.get("clip_fingerprint")]
        if not all(value is None or isinstance(value, str) for value in hashes):
            raise UsageError(f"{path}: a hash of the {part} is not a text")
    files = [name for entry in parts.values() for name in entry["files"]]
    for name in (*parts, *files):  # names become paths: none may lead outside
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise UsageError(f"{path} names {name!r}, which is not a plain name")
    return index


def _check_mappings(value, path, *names):
    """Raises UsageError unless `value` is a mapping, with mappings of these names."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{path} holds {str(value)[:60]!r}, expected values by name")
    for name in names:
        if name not in value:
            raise UsageError(f"{path} has no {name!r}")
        _check_mappings(value[name], f"{path}: {name}")


def _check_same_clip(folder, index):
    by_clip: dict[str, list[str]] = {}
    for part, entry in index["parts"].items():
        if part in (*PARTS, GUIDE):
            by_clip.setdefault(str(entry.get("clip_fingerprint")), []).append(part)
    if len(by_clip) > 1:
        groups = [
            f"{' and '.join(sorted(parts))} of the CLIP {clip[:12]}..."
            for clip, parts in by_clip.items()
        ]
        raise UsageError(
            f"{folder} would mix parts of different CLIPs: {'; '.join(groups)}. "
            "Embeddings of one CLIP mean nothing to another's: export the matching "
            "runs, into a new folder"
        )


def _check_file(folder, part, name, expected):
    file = pathlib.Path(folder) / part / name
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing, though {INDEX} lists it: export the {part} again"
        )
    found = sha256_file(file)
    if found != expected:
        raise UsageError(
            f"{file} is not the file that was exported (sha256 {found[:12]}..., "
            f"{INDEX} says {str(expected)[:12]}...): export the {part} again"
        )


def _commit(folder, part, index, write):
    """Writes a part's files, renames them into place, then replaces the index."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{part}-", dir=folder))
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        write(new)
        files = sorted(new.iterdir())
        for file in files:
            file.chmod(0o644)
            sync(file)
        index["parts"][part]["files"] = {f.name: sha256_file(f) for f in files}
        write_json(scratch / INDEX, index)
        if (folder / part).exists():
            (folder / part).rename(old)
        new.rename(folder / part)
        (scratch / INDEX).replace(folder / INDEX)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _link(file, to):
    try:
        os.link(file, to)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, to)


def _json(value) -> str:
    return json.dumps(value, sort_keys=True)
