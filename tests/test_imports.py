"""The plan of the house, kept true: who may import whom, and importing does nothing.

The walk sees every import at any level of a file (in functions, in `if TYPE_CHECKING`)
and `importlib.import_module("name")` with a literal name.
"""

import ast
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "unclip_jax"

# Room -> the other rooms it may know. Every one may know errors.py and config.py.
ROOMS: dict[str, tuple[str, ...]] = {
    # the ground floor
    "errors": (),
    "config": (),
    "data_spec": (),
    "files": (),
    "gaussian": (),
    "fonts": (),
    "grids": ("fonts", "images"),
    "images": ("files",),
    "progress": (),
    "shapes": (),
    "tokenizer": ("files",),
    "versions": (),
    "models": ("shapes",),
    "diffusion": ("shapes",),
    "stages": ("models", "diffusion", "data_spec"),
    "data": ("parallel", "data_spec", "files", "gaussian", "images", "tokenizer"),
    "parallel": ("files",),
    "interop": ("models", "diffusion", "files", "tokenizer"),
    "embedding": ("models", "interop", "data", "parallel")
    + ("files", "grids", "images", "progress", "tokenizer"),
    "generation": ("models", "diffusion", "interop", "parallel")
    + ("files", "gaussian", "grids", "images", "progress", "tokenizer"),
    "evaluation": ("generation", "data", "parallel", "models", "interop")
    + ("files", "grids", "images", "progress", "versions"),
    "training": ("stages", "parallel", "data", "evaluation")
    + ("data_spec", "files", "grids", "images", "progress"),
    "planning": ("training", "stages", "parallel", "data", "data_spec", "files"),
    "__main__": (),  # finds the entry points by name
    "__init__": ("generation",),  # UnCLIP, when it is first used
    "command_line": ("parallel",),  # joins the processes of a command
}
# Flags in, one call, nothing else; every one may know command_line.py.
ENTRY_POINTS = {
    "train": ("training", "interop"),  # reads what a run may start from
    "embed": ("embedding", "training"),  # reads what training wrote
    "align": ("data",),
    "sample": ("generation",),
    "sample_embeddings": ("evaluation", "generation"),
    "app": ("generation",),
    "evaluate": ("evaluation",),
    "compare": ("evaluation",),
    "estimate_variance": ("evaluation",),
    "init": ("planning",),
    "report": ("training",),
    "tune": ("evaluation",),
    "export": ("interop", "training"),  # likewise
    "plan": ("planning", "train"),
}

ROOMS |= {name: ("command_line", *rooms) for name, rooms in ENTRY_POINTS.items()}

# Room -> the libraries it may know besides the standard one and numpy.
LIBRARIES = {
    "command_line": ("absl", "ml_collections"),
    "config": ("ml_collections",),
    "files": ("etils",),
    "fonts": ("PIL", "pymupdf_fonts"),
    "grids": ("PIL",),
    "images": ("PIL",),
    "shapes": ("jax", "jaxtyping"),
    "versions": ("jax",),
    "progress": ("tqdm",),
    "tokenizer": ("etils", "ftfy", "huggingface_hub", "tokenizers", "transformers"),
    "models": ("jax", "jaxtyping", "flax"),
    "diffusion": ("jax", "jaxtyping"),
    "stages": ("jax", "flax", "optax"),
    "data": (
        "PIL",
        "array_record",
        "fonticon_mdi7",
        "h5py",
        "msgpack",
        "pyarrow",
        "tensorflow",
        "tensorflow_datasets",
        "tokenizers",
        "transformers",
    ),
    "parallel": ("etils", "jax"),
    "interop": (
        "etils",
        "jax",
        "flax",
        "ml_dtypes",
        "safetensors",
        "torch",
        "transformers",
    ),
    "embedding": ("jax", "flax", "PIL"),
    "generation": ("jax", "flax", "PIL", "tokenizers", "transformers")
    + ("gradio", "starlette"),  # the one is built on the other
    "evaluation": ("jax", "PIL"),
    "planning": ("jax", "flax", "ml_collections"),
    "training": ("etils", "google", "jax", "flax", "ml_collections", "optax", "orbax")
    + ("tensorboardX", "wandb"),
}
# Heavy or optional: never imported by importing a module of ours.
ONLY_IN_FUNCTIONS = (
    "gradio",
    "starlette",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
)
ONLY_IN_FUNCTIONS += ("transformers", "wandb")


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported name: "unclip_jax.data.order", "jax.numpy"."""

    line: int
    name: str
    in_function: bool


def find_imports(source: str, module: str, is_package: bool = False) -> list[Import]:
    """All imports of a module's source; relative ones made absolute."""
    parents = module.split(".") if is_package else module.split(".")[:-1]
    found = []

    def visit(node, in_function):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            value = getattr(node.args[0], "value", None)
            if called in ("import_module", "__import__") and isinstance(value, str):
                names = [value]
        found.extend(Import(node.lineno, name, in_function) for name in names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, in_function or inside)

    visit(ast.parse(source), False)
    return found


def offences(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module of the package imports and may not, one line each."""
    room = (module.split(".") + ["__init__"])[1]  # of unclip_jax/__init__.py itself
    if room not in ROOMS:
        return [f"{module}: {room!r} is not in the table of rooms"]
    lines = []
    known = (room, *ROOMS.get(room, ()))
    known += () if room == "errors" else ("errors", "config")
    for item in find_imports(source, module, is_package):
        parts = item.name.split(".")
        why = ""
        if parts[0] == PACKAGE:
            other = parts[1] if len(parts) > 1 else ""
            if other in ROOMS and other not in known:
                why = f"{room} may not know {other}"
            elif other and other not in ROOMS and not other.startswith("__"):
                why = f"{other!r} is not in the table of rooms"
        elif parts[0] not in sys.stdlib_module_names:
            if parts[0] not in ("numpy", *LIBRARIES.get(room, ())):
                why = f"{room} may not know {parts[0]}"
            elif parts[0] in ONLY_IN_FUNCTIONS and not item.in_function:
                why = f"{parts[0]} may be imported inside functions only"
            elif parts[:2] == ["jax", "_src"]:
                why = "jax._src is private"
        if why:
            lines.append(f"{module}:{item.line} imports {item.name}: {why}")
    return lines


def modules() -> dict[str, pathlib.Path]:
    """Module name -> file, for the whole package."""
    files = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        files[".".join(parts)] = path
    return files


def our_files() -> list[pathlib.Path]:
    folders = (PACKAGE, "configs", "launch", "tests")
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]


def test_rooms_know_only_whom_they_may():
    files = modules()
    assert len(files) > 20, "the walk does not find the package"
    found = []
    for module, path in files.items():
        source = path.read_text(encoding="utf-8")
        found += offences(source, module, path.name == "__init__.py")
    assert not found, "\n" + "\n".join(found)


def test_architecture_md_has_the_same_table():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*)\|$", text, re.MULTILINE)
    table = {room: tuple(re.findall(r"`(\w+)`", others)) for room, others in rows}
    for room, others in {**ROOMS, **ENTRY_POINTS}.items():
        row = f"| `{room}` | ... | {' '.join(f'`{other}`' for other in others)} |"
        same = set(table.get(room, ("no row",))) == set(others)
        assert same, f"ARCHITECTURE.md, table of rooms: write the row {row}"
    assert list(table) == [r for r in table if r in ROOMS], "a row of no room"


def test_the_table_has_no_cycle():
    done: set[str] = set()
    while len(done) < len(ROOMS):
        ready = {r for r in ROOMS if r not in done and set(ROOMS[r]) <= done}
        assert ready, f"rooms that know each other: {sorted(set(ROOMS) - done)}"
        done |= ready


def test_configs_and_launchers_need_no_library():
    """A config is a table of values; a launcher runs before anything is installed."""
    for folder, allowed in (("configs", {"ml_collections"}), ("launch", set())):
        files = list((ROOT / folder).rglob("*.py"))
        allowed = allowed | {folder, *(path.stem for path in files)}
        for path in files:
            for item in find_imports(path.read_text(encoding="utf-8"), "file"):
                name = item.name.split(".")[0]
                known = name in sys.stdlib_module_names or name in allowed
                assert known, f"{path.relative_to(ROOT)}:{item.line} imports {name}"


@pytest.mark.parametrize(
    "module, source, reason",
    [
        ("models.unet", "import unclip_jax.data.order", "models may not know data"),
        ("models.unet", "from unclip_jax import data", "models may not know data"),
        ("models.unet", "from ..data import order", "models may not know data"),
        ("models.unet", "from .. import data, config", "models may not know data"),
        ("models.unet", "import optax", "models may not know optax"),
        ("diffusion.process", "import flax", "diffusion may not know flax"),
        ("diffusion.process", "from .. import stages", "diffusion may not know stages"),
        (
            "generation.batching",
            "def f():\n    import tensorflow as tf",
            "generation may not know tensorflow",
        ),
        (
            "training.loop",
            "import importlib\nf = lambda: importlib.import_module('tensorflow.io')",
            "training may not know tensorflow",
        ),
        (
            "training.loop",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
            "training may not know torch",
        ),
        ("data.loader", "import tensorflow as tf", "inside functions only"),
        ("data.loader", "class A:\n    import tensorflow", "inside functions only"),
        ("interop.openai", "import torch", "inside functions only"),
        ("config", "from unclip_jax import models", "config may not know models"),
        ("errors", "from unclip_jax import config", "may not know config"),
        ("models.unet", "from unclip_jax import command_line", "may not know command"),
        ("sample", "from unclip_jax import training", "sample may not know training"),
        ("kitchen.sink", "", "not in the table"),
        ("models.unet", "from unclip_jax import kitchen", "not in the table"),
        ("parallel.mesh", "from jax._src import mesh", "private"),
        ("", "import jax", "__init__ may not know jax"),
    ],
)
def test_an_offence_is_caught(module, source, reason):
    module = f"{PACKAGE}.{module}".rstrip(".")
    (line,) = offences(source, module, is_package=module == PACKAGE)
    assert reason in line


@pytest.mark.parametrize(
    "module, source",
    [
        ("models.unet", "import jax\nfrom unclip_jax import config\nfrom . import x"),
        ("data.loader", "def f():\n    import tensorflow as tf"),
        ("interop.openai", "def f():\n    import torch"),
        ("stages.prior", "from ..diffusion import process\nimport unclip_jax"),
        ("files", "from unclip_jax import __version__"),
        ("train", "def main():\n    from unclip_jax.training import loop"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert offences(source, f"{PACKAGE}.{module}") == []


def test_a_package_resolves_its_own_relative_imports():
    (line,) = offences("from ..data import order", f"{PACKAGE}.models", True)
    assert "models may not know data" in line
    assert offences("from . import unet", f"{PACKAGE}.models", True) == []


def test_files_stay_readable():
    for path in our_files():
        name = path.relative_to(ROOT)
        assert "utils" not in name.with_suffix("").parts, f"{name}: name what it does"
        count = len(path.read_text(encoding="utf-8").splitlines())
        assert count <= 500, f"{name} has {count} lines: divide it"


# A platform that does not exist: whatever touches a device while importing fails.
NO_DEVICE = {"JAX_PLATFORMS": "none_such", "PYTHONPATH": str(ROOT)}
IMPORT_ALL = """
    import importlib, sys
    from absl import flags
    for name in sys.argv[1:]:
        importlib.import_module(name)
    names = flags.FLAGS.flags_by_module_dict()
    ours = [name for name in names if name.startswith("unclip_jax")]
    assert not ours, f"flags defined while importing {{ours}}"
    assert not flags.FLAGS.is_parsed(), "flags parsed while importing"
    heavy = {heavy!r}
    loaded = [name for name in heavy if name in sys.modules]
    assert not loaded, f"imported by importing the package: {{loaded}}"
    import jax
    try:
        jax.devices()
    except RuntimeError:
        pass
    else:
        raise AssertionError("this check cannot see devices being touched")
"""


@pytest.mark.slow
def test_importing_does_nothing(tmp_path):
    code = textwrap.dedent(IMPORT_ALL.format(heavy=ONLY_IN_FUNCTIONS))
    result = subprocess.run(
        [sys.executable, "-c", code, *modules()],
        cwd=tmp_path,
        env={**os.environ, **NO_DEVICE},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
