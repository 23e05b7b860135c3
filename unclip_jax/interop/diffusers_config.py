"""config.json of diffusers' folders, read and checked."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.files import read_json, write_json
from unclip_jax.interop import weights

FILE = "config.json"
OURS = "unclip_jax.json"  # what this package notes beside a pipeline's index


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The settings in a folder. Raises FileNotFoundError, UsageError if not JSON."""
    path = pathlib.Path(folder) / FILE
    return read_json(path, f"{path} does not exist: is {folder} the right folder?")


def check_modules(folders: Iterable[pathlib.Path]) -> None:
    """Raises FileNotFoundError for modules of a pipeline that are not there."""
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        names = ", ".join(f"{folder.name}/" for folder in missing)
        raise FileNotFoundError(
            f"{missing[0].parent} lacks {names} of its pipeline: the folder is not "
            "complete; download or export it again"
        )


def check_same_width(kind: str, where, takes: int, makes: int) -> None:
    """Raises UsageError for a part that takes wider or narrower embeddings than CLIP's.

    `where` is the folder, `takes` what the part takes, `makes` what the CLIP makes.
    """
    if takes != makes:
        raise UsageError(
            f"the {kind} of {where} takes embeddings of {takes} numbers, the CLIP "
            f"makes {makes}: they are of different models"
        )


def read_fingerprints(folder: pathlib.Path) -> dict[str, str]:
    """The CLIP of each part that this package wrote into a pipeline's folder."""
    path = folder / OURS
    found = read_json(path, "").get("clip_fingerprints") if path.is_file() else {}
    if not isinstance(found, dict):
        raise UsageError(f"{path}: clip_fingerprints must be {{...}}, got {found!r}")
    return found


def write_config(folder: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Writes the settings; the folder is made if it does not exist."""
    path = pathlib.Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, config)


def write_model(
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    dtype: str,
) -> None:
    """Writes a model's folder: its tensors, then the settings."""
    weights.write_weights(folder, tensors, weights.STEMS[0], dtype)
    write_config(folder, config)


def check_settings(
    config: Mapping[str, Any],
    class_name: str,
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
    unused: Sequence[str],
    where: str,
) -> dict[str, Any]:
    """The settings of a class of theirs that a model of ours follows.

    Args:
      config: of config.json.
      class_name: the class it must be of.
      defaults: the settings we follow, with what their class takes where it is silent.
      fixed: settings for which we have no counterpart but this value; what their class
        takes where it is silent is this too, unless `defaults` says otherwise.
      unused: settings that change nothing for the models we read.
      where: the file, for messages.

    Returns:
      `defaults` updated by `config`.

    Raises:
      UsageError: another class, an unknown setting, or a value we cannot follow.
    """
    found = config.get("_class_name", class_name)
    if found != class_name:
        raise UsageError(f"{where}: expected a {class_name}, found a {found}")
    given = {k: v for k, v in config.items() if not k.startswith("_")}
    config_lib.check_keys(given, {*defaults, *fixed, *unused}, where)
    settings = {**fixed, **defaults, **given}
    for name, value in fixed.items():
        if settings[name] != value:
            raise UsageError(
                f"{where}: {name} is {settings[name]!r}; only {value!r} is supported"
            )
    return {name: settings[name] for name in defaults}


def add_fingerprint(made_for: Mapping[str, str], part, folder) -> dict[str, str]:
    """The fingerprints of the CLIPs that a folder's parts are for, with a part's.

    Raises UsageError where they would be of several CLIPs.
    """
    added = {**made_for}
    if part.clip_fingerprint is not None:
        added[part.kind] = part.clip_fingerprint
    if len(set(added.values())) > 1:
        listed = ", ".join(f"{kind} {clip[:12]}..." for kind, clip in added.items())
        raise UsageError(
            f"{folder} would mix parts of different CLIPs ({listed}): export the "
            "matching runs, into a new folder"
        )
    return added


def check_holds(class_name: str, kind: str, fields: Mapping[str, tuple]) -> None:
    """Raises UsageError for a model of ours that a class of theirs cannot hold.

    Args:
      class_name: the class.
      kind: "priors", "decoders", ...
      fields: name -> (what the model has, the only value that they have).
    """
    for name, (value, only) in fields.items():
        if value != only:
            raise UsageError(
                f"diffusers' {class_name} holds {kind} with {name} {only!r}; this one "
                f"has {value!r}: keep it in the native format"
            )
