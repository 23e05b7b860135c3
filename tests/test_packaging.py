"""The wheel: what it needs, that it builds, and that it works where it is installed."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

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


@pytest.mark.slow
def test_a_wheel_works_elsewhere(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(
        ROOT / "unclip_jax",
        source / "unclip_jax",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    local = ("--quiet", "--no-deps", "--no-index")
    build = (*local, "--no-build-isolation", f"--wheel-dir={tmp_path}", str(source))
    run(*pip, "wheel", *build)
    (wheel,) = tmp_path.glob("unclip_jax-*.whl")
    site = tmp_path / "site"
    run(*pip, "install", *local, f"--target={site}", str(wheel))

    modules = [p.relative_to(ROOT) for p in (ROOT / "unclip_jax").rglob("*.py")]
    assert all((site / module).is_file() for module in modules)
    assert (site / "unclip_jax" / "py.typed").is_file()
    (metadata,) = site.glob("unclip_jax-*.dist-info/METADATA")
    lines = metadata.read_text().splitlines()
    assert {f"Provides-Extra: {name}" for name in EXTRAS} <= {*lines}
    assert [line for line in lines if line.startswith("Requires-Dist: flax")]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = "import unclip_jax; print(unclip_jax.__file__)"
    place = run(sys.executable, "-c", code, cwd=tmp_path, env=environment)
    assert place.startswith(str(site))
    listed = run(str(site / "bin" / "unclip"), "--help", cwd=tmp_path, env=environment)
    assert "\n  train " in listed
