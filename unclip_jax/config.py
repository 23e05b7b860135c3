"""Configs: check them, and build objects from them.

A config is a Python file with `get_config() -> ml_collections.ConfigDict`. It holds
what differs from the defaults of the command's dataclass, such as TrainConfig; any key
of either can be set on the command line: `--config.optimizer.learning_rate=1e-4`.
Every room builds its objects with `build`, so that a mistyped key is refused in the
same words everywhere, with the place it stands in and the nearest valid name.
"""

import dataclasses
import difflib
import importlib.util
import numbers
import pathlib
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
import numpy as np

from unclip_jax.errors import UsageError

_LINEN_FIELDS = ("parent", "name")  # every flax.linen.Module has them; not options
_SCALARS = {
    "bool": (bool, np.bool_),
    "int": (numbers.Integral,),
    "float": (numbers.Real,),
    "str": (str,),
}


def check_keys(mapping: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    """Raises UsageError naming each key of `mapping` that is not in `allowed`."""
    allowed = list(allowed)
    for key in mapping:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(
                f"unknown key {key!r} in {where}: {hint}"
                f"(valid: {', '.join(sorted(allowed))})"
            )


def is_mapping(value: Any) -> bool:
    """Whether `value` has keys: ConfigDict is no Mapping."""
    return isinstance(value, Mapping | ml_collections.ConfigDict)


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The options below a key; none where it is missing, or holds something else."""
    value: Any = config.get(key)
    return value if is_mapping(value) else {}


def build(cls: type, config: Mapping[str, Any], where: str = "config.model", **given):
    """Builds the dataclass or Linen module `cls` from a mapping of its fields.

    Args:
      cls: a dataclass (a Linen module is one).
      config: field name -> value; lists become tuples, a mapping given for a field
        whose type is a dataclass builds that dataclass.
      where: the place the mapping came from, for messages.
      **given: fields set by the caller; they may not be in `config`.

    Raises:
      UsageError: an unknown key, a missing field, or a scalar of the wrong type.
    """
    if not is_mapping(config):
        raise UsageError(f"{where} must be a mapping of options, got {config!r}")
    fields = {
        field.name: field
        for field in _option_fields(cls)
        if field.init and field.name not in given
    }
    check_keys(config, fields, where)
    missing = [
        name
        for name, field in fields.items()
        if name not in config
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{where} lacks {', '.join(map(repr, missing))}")
    values = {
        name: _field_value(fields[name], value, f"{where}.{name}")
        for name, value in config.items()
    }
    return cls(**values, **given)


def _option_fields(cls) -> list[dataclasses.Field]:
    """The fields of a dataclass, without those that every Linen module has."""
    fields = dataclasses.fields(cls)
    linen = {field.name for field in fields}.issuperset(_LINEN_FIELDS)
    return [f for f in fields if not (linen and f.name in _LINEN_FIELDS)]


def _field_value(field: dataclasses.Field, value: Any, where: str) -> Any:
    if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
        return build(field.type, value, where)
    if typing.get_origin(field.type) is dict and not is_mapping(value):
        raise UsageError(f"{where} must be a mapping of options, got {value!r}")
    if not (value is None and field.default is None):
        check_type(value, field.type, where)
    return _frozen(value)


def check_type(value: Any, annotation: Any, where: str) -> None:
    """Raises UsageError where a scalar is annotated and `value` is another one.

    Args:
      value: of an option.
      annotation: bool, int, float or str, its name, or a union of them and None;
        anything else is not checked.
      where: the option, for the message.
    """
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    every = typing.get_args(annotation) if is_union else (annotation,)
    kinds = [getattr(one, "__name__", one) for one in every]
    if value is None and "NoneType" in kinds:
        return
    kinds = [kind for kind in kinds if kind != "NoneType"]
    if not all(kind in _SCALARS for kind in kinds):
        return
    is_bool = isinstance(value, bool | np.bool_)
    allowed = [kind for kind in kinds if (kind == "bool") == is_bool]
    if not any(isinstance(value, _SCALARS[kind]) for kind in allowed):
        raise UsageError(f"{where} must be of type {' or '.join(kinds)}, got {value!r}")


def _frozen(value: Any) -> Any:
    """Lists become tuples (Linen modules must be hashable), ConfigDicts dicts."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if is_mapping(value):
        return {key: _frozen(item) for key, item in value.items()}
    return value


def defaults(cls: type) -> dict[str, Any]:
    """{field: default} of a dataclass or Linen module, nested as its fields are.

    A type stands for a field without a default; None for one of any type.
    """
    values: dict[str, Any] = {}
    for field in _option_fields(cls):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            values[field.name] = defaults(field.type)
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        else:
            known = getattr(field.type, "__name__", field.type) in _SCALARS
            values[field.name] = field.type if known else None
    return values


def with_defaults(
    config: Mapping[str, Any], defaults: Mapping[str, Any], required: bool = False
) -> dict[str, Any]:
    """`config` and what it leaves out of `defaults`; `required`: types, too."""
    complete = {}
    for key in [*defaults, *(key for key in config if key not in defaults)]:
        known = defaults.get(key)
        value = config.get(key, {} if is_mapping(known) else known)
        if known is not None and is_mapping(known) and is_mapping(value):
            complete[key] = with_defaults(value, known, required)
        elif key in config or required or not isinstance(known, type):
            complete[key] = value
    return complete


def to_plain(config: Any, where: str = "config") -> Any:
    """A copy made of dict, list, str, int, float, bool and None only (JSON-able).

    Raises UsageError naming the place of a value that has no such form.
    """
    if config is None or isinstance(config, bool | int | float | str):
        return config
    if is_mapping(config):
        return {str(k): to_plain(v, f"{where}.{k}") for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(v, f"{where}[{i}]") for i, v in enumerate(config)]
    if isinstance(config, np.ndarray | np.generic):
        return config.tolist()
    if isinstance(config, pathlib.PurePath):
        return str(config)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            f.name: to_plain(getattr(config, f.name), f"{where}.{f.name}")
            for f in _option_fields(config)
        }
    raise UsageError(f"{where} has no plain form: {config!r}")


def load(path: str) -> ml_collections.ConfigDict:
    """The locked config of `path`; "file.py:words" calls `get_config("words")`.

    A file in a folder configs/ may import others of it: `from configs import common`.
    """
    file, *argument = str(path).split(":", 1)
    if not pathlib.Path(file).is_file():
        raise FileNotFoundError(f"config file {file!r} does not exist")
    spec = importlib.util.spec_from_file_location("unclip_jax_config_file", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"config file {file!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folders = pathlib.Path(file).resolve().parents
    roots = [str(folder.parent) for folder in folders if folder.name == "configs"]
    sys.path[:0] = roots
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UsageError(f"config file {file!r} does not define get_config()")
        config = module.get_config(*argument)
    except UsageError:
        raise
    except Exception as error:  # whatever a mistake in somebody's Python raises
        raise UsageError(_explain(file, error)) from error
    finally:
        del sys.path[: len(roots)]
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(
            f"get_config() of {file!r} must return an ml_collections.ConfigDict, "
            f"got {type(config).__name__}"
        )
    return config.lock()


def _explain(file: str, error: Exception) -> str:
    """What a config file raised, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines = [error.lineno]
    where = f", line {lines[-1]}" if lines else ""
    text = f"config file {file!r}{where}: {type(error).__name__}: {error}"
    return f"{text} (--debug shows where it comes from)"
