"""The wheel: what it needs, that it builds, and that it works where it is installed."""

import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib

import pytest

from tests.environment import environment
from tests.tiny_export import write_export, write_statistics

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(name):
    """(requirements, names of other lists that are included) of a file."""
    lines = (ROOT / f"requirements-{name}.txt").read_text().splitlines()
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    included = {
        match[1]
        for line in lines
        if (match := re.fullmatch(r"-r requirements-(\w+)\.txt", line))
    }
    return {line for line in lines if line and not line.startswith("-r")}, included


@pytest.mark.parametrize("name", sorted({*EXTRAS} - {"cuda"}))
def test_an_extra_is_its_requirements_file(name):
    expected, included = requirements(name)
    assert expected
    if included:
        expected = {*expected, f"unclip-jax[{','.join(sorted(included))}]"}
    assert set(EXTRAS[name]) == expected


def test_the_cuda_extra_is_what_the_image_installs():
    (requirement,) = EXTRAS["cuda"]
    assert f'"{requirement}"' in (ROOT / "launch" / "Dockerfile").read_text()


def run(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


# What a notebook does: each cell in turn, its last expression shown.
NOTEBOOK = """
import json, sys
import unclip_jax
print(unclip_jax.__file__)
names = {}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        *lines, last = "".join(cell["source"]).split("\\n")
        try:
            shown = compile(last, "cell", "eval")
        except SyntaxError:
            exec("\\n".join([*lines, last]), names)
            continue
        exec("\\n".join(lines), names)
        value = eval(shown, names)
        png = getattr(value, "_repr_png_", lambda: b"")()
        assert not png or png.startswith(b"\\x89PNG")
        print("image" if png else type(value).__name__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A new virtual environment with the wheel, and this one's libraries behind it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(
        ROOT / "unclip_jax",
        source / "unclip_jax",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    local = ("--quiet", "--no-deps", "--no-index")
    build = (*local, "--no-build-isolation", f"--wheel-dir={folder}", str(source))
    run(*pip, "wheel", *build)
    (wheel,) = folder.glob("unclip_jax-*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "venv" / "bin" / "python"
    run(
        *pip,
        f"--python={python}",
        "install",
        *local,
        "--no-warn-script-location",
        wheel,
    )
    return site, python


def elsewhere(devices=1):
    """The environment of a process that does not know of this repository."""
    variables = environment(devices)
    del variables["PYTHONPATH"]
    return variables


@pytest.mark.slow
def test_a_wheel_is_whole_and_has_the_command(installed, tmp_path):
    site, python = installed
    modules = [p.relative_to(ROOT) for p in (ROOT / "unclip_jax").rglob("*.py")]
    assert all((site / module).is_file() for module in modules)
    assert (site / "unclip_jax" / "py.typed").is_file()
    (metadata,) = site.glob("unclip_jax-*.dist-info/METADATA")
    lines = metadata.read_text().splitlines()
    assert {f"Provides-Extra: {name}" for name in EXTRAS} <= {*lines}
    assert [line for line in lines if line.startswith("Requires-Dist: flax")]
    unclip = str(python.with_name("unclip"))
    options = {"cwd": tmp_path, "env": elsewhere()}
    assert "\n  train " in run(unclip, "--help", **options)
    assert "--decoder_guidance" in run(unclip, "sample", "--help", **options)


@pytest.mark.slow
def test_the_tour_runs_elsewhere(installed, tmp_path):
    site, python = installed
    folder = write_export(tmp_path / "exports" / "icons", num_steps=1000)
    write_statistics(folder)
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    command = (str(python), "notebook.py", str(ROOT / "docs" / "tour.ipynb"))
    place, *shown = run(*command, cwd=tmp_path, env=elsewhere()).splitlines()
    assert place.startswith(str(site))
    assert shown[0] == "UnCLIP" and shown.count("image") >= 10
    assert (tmp_path / "hearts.png").is_file() and (tmp_path / "heart.png").is_file()
