"""`python -m unclip_jax COMMAND`, and that importing the package costs nothing."""

import pathlib
import subprocess
import sys

import pytest

import unclip_jax
from unclip_jax import __main__ as main_module

PACKAGE = pathlib.Path(unclip_jax.__file__).parent
ENTRY_POINTS = {
    path.stem
    for path in PACKAGE.glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
} - {"__main__"}

# The entry points were imported by other tests, and run again as __main__.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


def run(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main_module.main(["unclip", *argv])
    return stop.value.code, capsys.readouterr()


def test_the_list_has_every_entry_point(capsys):
    listed = [name for names in main_module.COMMANDS.values() for name in names]
    assert len(ENTRY_POINTS) >= 8 and sorted(listed) == sorted(ENTRY_POINTS)
    code, output = run(capsys, "--help")
    assert code == 0
    for name in listed:
        assert f"\n  {name} " in output.out
        assert main_module.summary(name) in output.out


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_help_of_a_command_is_the_module_s(capsys, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    code, output = run(capsys, name, "--help")
    assert code == 0
    assert output.out.startswith(main_module.summary(name)[:40])
    assert "flags:" in output.out


def test_mistakes_are_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    code, output = run(capsys, "smaple")
    assert code == 2 and "did you mean 'sample'" in output.err
    assert run(capsys)[0] == 2
    code, output = run(capsys, "--version")
    assert code == 0 and output.out == f"unclip_jax {unclip_jax.__version__}\n"
    code, output = run(capsys, "sample", "--model=nowhere", "--otu=x.png")
    assert code == 2 and "otu" in output.err


def test_importing_the_package_imports_no_library():
    code = """
import sys
before = set(sys.modules)
import unclip_jax
names = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(names - set(sys.stdlib_module_names)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert result.stdout == "['unclip_jax']\n", result.stderr


def test_the_public_class_is_at_the_top():
    from unclip_jax import UnCLIP, generation

    assert UnCLIP is generation.UnCLIP and "UnCLIP" in dir(unclip_jax)
    with pytest.raises(AttributeError, match="UnClip"):
        _ = unclip_jax.UnClip
