"""All commands behind one name: `python -m unclip_jax COMMAND`, installed `unclip`.

`unclip train ...` and `python -m unclip_jax.train ...` are the same.
"""

import ast
import difflib
import pathlib
import runpy
import sys
from collections.abc import Sequence

import unclip_jax

COMMANDS = {
    "Data and training": ("init", "embed", "align", "train", "report", "plan"),
    "Sampling": ("sample", "sample_embeddings", "app", "estimate_variance"),
    "Evaluation": ("evaluate", "compare"),
    "Export": ("export", "tune"),
}
USAGE = """usage: unclip COMMAND [--flags]

{commands}

`unclip COMMAND --help` lists the flags of a command, `unclip --version` says which
this is."""


def summary(command: str) -> str:
    """The first sentence of a command's docstring; nothing is imported."""
    source = pathlib.Path(__file__).with_name(f"{command}.py").read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return docstring.split("\n\n")[0].replace("\n", " ")


def usage() -> str:
    """The list of all commands by group."""
    names = [name for group in COMMANDS.values() for name in group]
    width = max(map(len, names))
    groups = [
        "\n".join([f"{title}:", *(f"  {n:{width}}  {summary(n)}" for n in commands)])
        for title, commands in COMMANDS.items()
    ]
    return USAGE.format(commands="\n\n".join(groups))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; `argv` is sys.argv by default.

    Exits with 2 and one line on stderr for an unknown command; otherwise as the
    command does.
    """
    argv = list(sys.argv if argv is None else argv)
    names = [name for group in COMMANDS.values() for name in group]
    if len(argv) < 2 or argv[1] in ("-h", "-help", "--help", "help"):
        print(usage())
        sys.exit(0 if len(argv) > 1 else 2)
    command = argv[1]
    if command in ("--version", "version"):
        print(f"unclip_jax {unclip_jax.__version__}")
        sys.exit(0)
    if command not in names:
        near = difflib.get_close_matches(command, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(
            f"error: unknown command {command!r}: {hint}(valid: {', '.join(names)})",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.argv = [f"unclip {command}", *argv[2:]]
    runpy.run_module(f"unclip_jax.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
