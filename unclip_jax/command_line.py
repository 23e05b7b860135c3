"""The command line of every command: its flags, its --help, its errors, its exit code.

Flags are read by absl, a --config file by ml_collections; any key of the config can be
set by a flag of its own: `--config.optimizer.learning_rate=1e-4`.
"""

import difflib
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags as absl_flags
from ml_collections import config_flags

from unclip_jax.config import check_keys, is_mapping, load
from unclip_jax.errors import UsageError

REQUIRED = object()  # default of an extra flag that must be given (see `run`)


def run(
    main: Callable[[types.SimpleNamespace], int | None],
    *,
    config: bool = True,
    defaults: Callable[[ml_collections.ConfigDict], Mapping[str, Any]] = lambda _: {},
    workdir: bool | None = None,
    extra_flags: Mapping[str, tuple[Any, str]] = types.MappingProxyType({}),
    groups: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
    distributed: bool | Callable[[types.SimpleNamespace], bool] = False,
    argv: Sequence[str] | None = None,
) -> None:
    """Runs an entry point: flags in, `main(args)`, one line for an error, exit code.

    Args:
      main: called with a namespace holding one attribute per flag; `args.config` is the
        ConfigDict with the command line's overrides applied. Its return value is the
        exit code (None is 0).
      config: whether there is a (required) --config flag.
      defaults: the defaults of what a config leaves out, as the function `defaults`
        gives them; flags may name these keys, too.
      workdir: whether there is a (required) --workdir flag; as `config` by default.
      extra_flags: name -> (default, help). The type is the default's: bool, int, float,
        str, or list (a flag that may be repeated); None is an optional string, a type
        an optional value of it, and `REQUIRED` a string that must be given.
      groups: title -> extra flags that --help lists under it, after all others.
      distributed: whether `main` may run in several processes, which are joined first
        and end together, see parallel.distributed; or a function of the flags that
        says so.
      argv: the command line; sys.argv by default.

    Exits with 2 and `error: ...` on stderr for a mistake in what was asked (UsageError,
    OSError, a bad flag), with 130 when interrupted; other exceptions, which are bugs,
    show their traceback.
    """
    argv = list(sys.argv if argv is None else argv)
    if config if workdir is None else workdir:
        extra_flags = {"workdir": (REQUIRED, "folder of the run"), **extra_flags}
    if distributed:
        from unclip_jax.parallel.distributed import FLAGS

        extra_flags = {**extra_flags, **FLAGS}
    debug = any(re.fullmatch("--?debug(=true|=1)?", arg) for arg in argv)
    try:
        args = _parse(argv, config, defaults, extra_flags)
        if args is None:  # --help
            print(_usage(main, config, extra_flags, groups))
            sys.exit(0)
        from unclip_jax.parallel.compilation_cache import use_compilation_cache

        use_compilation_cache()
        if distributed(args) if callable(distributed) else distributed:
            from unclip_jax.parallel.distributed import run_distributed

            sys.exit(run_distributed(lambda: main(args), args) or 0)
        sys.exit(main(args) or 0)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command to continue", file=sys.stderr)
        sys.exit(130)
    except (UsageError, OSError, absl_flags.Error) as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except (AssertionError, RuntimeError) as error:
        from unclip_jax.parallel.mesh import why_no_devices

        if debug or not (text := why_no_devices(error)):
            raise
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)


def _parse(argv, config, defaults, extra_flags):
    values = absl_flags.FlagValues()
    define = dict(flag_values=values)
    if config:
        argv, path = _take_flag(argv, "config")
        if path is None and not _asks_help(argv):
            raise UsageError("--config=FILE is required, e.g. configs/icons/prior.py")
        if path is not None:
            loaded = load(path)
            argv = _prepare_overrides(argv, loaded, defaults)
            config_flags.DEFINE_config_dict("config", loaded, sys_argv=argv, **define)
    absl_flags.DEFINE_bool("debug", False, "show tracebacks", **define)
    kind: dict[Any, str]
    kind = {bool: "bool", int: "integer", float: "float", list: "multi_string"}
    for name, (default, text) in extra_flags.items():
        optional = default is REQUIRED or isinstance(default, type)
        known = kind.get(default if optional else type(default), "string")
        definer = getattr(absl_flags, f"DEFINE_{known}")
        definer(name, None if optional else default, text, **define)
    if _asks_help(argv):
        return None
    try:
        rest = values(argv)[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise UsageError(f"{error}{_nearest_flag(error, extra_flags)}") from error
    if rest:
        raise UsageError(
            f"unexpected argument {rest[0]!r}; flags look like --name=value"
        )
    for name, (default, text) in extra_flags.items():
        if default is REQUIRED and not values[name].value:
            raise UsageError(f"--{name} is required: {text}")
    return types.SimpleNamespace(**{name: values[name].value for name in values})


def _take_flag(argv, name):
    """(argv without --name, its value); accepts --name=value and --name value."""
    rest, value = [], None
    arguments = iter(argv)
    for arg in arguments:
        if re.fullmatch(f"--?{name}", arg):
            value = next(arguments, "")
        elif match := re.fullmatch(f"--?{name}=(.*)", arg):
            value = match[1]
        else:
            rest.append(arg)
    return rest, value


def _asks_help(argv) -> bool:
    return any(arg in ("-h", "-help", "--help") for arg in argv[1:])


def _prepare_overrides(argv, config, defaults) -> list[str]:
    """Gives `config` the keys that flags name, each with its default.

    Returns:
      argv without the flags whose values are already in `config`.

    Raises:
      UsageError: a key that there is not.
    """
    flags = [re.match(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", arg) for arg in argv]
    overrides = [(match[1].split("."), match[2]) for match in flags if match]
    with config.unlocked():
        # first those that decide which other keys there are: a stage, a source
        for keys, value in overrides:
            if value is not None and isinstance(_get(config, keys), str):
                config.update_from_flattened_dict({".".join(keys): value})
        known = defaults(config)
        for keys, _ in overrides:
            _add_key(config, known, keys)
        # absl takes the methods of a ConfigDict, such as `keys`, for values
        for keys, _ in overrides:
            if hasattr(ml_collections.ConfigDict, keys[-1]):
                name = ".".join(keys)
                argv, value = _take_flag(argv, re.escape(f"config.{name}"))
                if value is not None:
                    config.update_from_flattened_dict({name: value})
    return argv


def _add_key(config, defaults, keys) -> None:
    node, known, where = config, defaults, "config"
    for key in keys:
        if not isinstance(node, ml_collections.ConfigDict):
            flag = f"--config.{'.'.join(keys)}"
            raise UsageError(f"{where} is a value, not a section: {flag!r}")
        known = known if is_mapping(known) else {}
        check_keys({key: None}, [*node, *known], where)
        default = known.get(key)
        if node.get(key) is None:
            if default is None or isinstance(default, type):
                default = ml_collections.config_dict.placeholder(default or object)
            node[key] = {} if is_mapping(default) else default
        node = node[key]
        known = known.get(key, {})
        where += f".{key}"


def _get(config, keys) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, ml_collections.ConfigDict) else 0
    return config


def _usage(main, config, extra_flags, groups) -> str:
    lines = [(sys.modules[main.__module__].__doc__ or "").strip(), "", "flags:"]
    if config:
        lines += [
            "  --config=FILE[:words]  a Python file with get_config()",
            "  --config.KEY=VALUE  overrides a value of it",
        ]
    grouped = {name for names in groups.values() for name in names}
    rest = [name for name in extra_flags if name not in grouped]
    lines += [_help_line(name, *extra_flags[name]) for name in rest]
    lines.append("  --debug  show tracebacks")
    for title, names in groups.items():
        lines += ["", f"{title}:"]
        lines += [_help_line(name, *extra_flags[name]) for name in names]
    return "\n".join(lines)


def _help_line(name, default, text) -> str:
    if not isinstance(default, type) and default not in ([], ""):
        value = "required" if default is REQUIRED else f"default {default!r}"
        text = f"{text} ({value})"
    return f"  --{name}  {text}"


def _nearest_flag(error: absl_flags.UnrecognizedFlagError, names) -> str:
    """What absl leaves out of its message: flags that hold the mistyped one's name."""
    if "Did you mean" in str(error):
        return ""
    name = error.flagname.replace("-", "_")
    near = [flag for flag in names if name in flag]
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f". Did you mean: {', '.join(near)} ?" if near else ""
