"""README.md and docs/: every command, flag, file, config key and snippet exists.

Blocks of shell commands go through the entry points' own flag parsing, with `main`
replaced; blocks of Python are compiled, their names resolved, and calls of the model
bound to the signatures of `UnCLIP`. A block that cannot be checked is marked, in the
line above it, with <!-- not run: REASON -->. The README's chain of commands and its
Python run on tiny models in test_commands.py.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator

import pytest

from unclip_jax import __main__ as main_module
from unclip_jax import align, command_line, embed, evaluate, train
from unclip_jax import config as config_lib
from unclip_jax.data import sources
from unclip_jax.parallel import distributed

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))
COMMANDS = [name for names in main_module.COMMANDS.values() for name in names]
ROOMS = [path.name for path in (ROOT / "tests").iterdir() if path.is_dir()]
# Programs of others, whose flags are theirs.
PROGRAMS = ("cd", "docker", "export", "gcloud", "git", "kubectl", "sbatch", "sky")
PROGRAMS += ("tensorboard",)
PYTHONS = ("python", "python3", ".venv/bin/python")
PIPS = ("pip", ".venv/bin/pip")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block; `reason` says why it is not checked, or is empty."""

    where: str
    language: str
    text: str
    reason: str


def blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found, lines = [], text.splitlines()
    fences = [i for i, line in enumerate(lines) if line.lstrip().startswith("```")]
    assert len(fences) % 2 == 0, f"{page}: a block does not end"
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        above = lines[start - 1] if start else ""
        comment = re.fullmatch(r"<!-- not run: (.+) -->", above.strip())
        found.append(
            Block(
                where=f"{page}:{start + 1}",
                language=lines[start].strip().removeprefix("```"),
                text="\n".join(lines[start + 1 : end]) + "\n",
                reason=comment[1] if comment else "",
            )
        )
    return found


def prose(text: str) -> str:
    """A page without its fenced blocks and comments."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def inline_code(text: str) -> list[str]:
    """The `code` of a page's prose, on one line each."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without `A=b` before it; operators divide them."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();|&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word[0] not in "();|&":
                words.append(word)
                continue
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []


def check_command(words: list[str], parse: Callable) -> None:
    """Raises or fails for a command that would be refused."""
    program, *rest = words
    if program in PYTHONS:
        check_python(rest, parse)
    elif program == "unclip":
        parse(rest[0], rest[1:])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        named = {word for word in rest if not re.match("[A-Z]+=", word)}
        assert named <= {*targets}, f"make has no {named}"
    elif program in PIPS:
        check_pip(rest)
    elif program in (".", "source"):
        assert rest[0].startswith(".venv/") or (ROOT / rest[0]).is_file(), rest[0]
    elif program.startswith("launch/"):
        check_launcher(program, rest, parse)
    else:
        assert program in PROGRAMS, f"unknown program {program!r}"
        files = [word for word in rest if re.match(r"(launch|configs|docs)/", word)]
        assert all((ROOT / file).exists() for file in files), files


def check_python(rest: list[str], parse: Callable) -> None:
    if rest[0] != "-m":
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif rest[1] == "unclip_jax":
        if rest[2:] != ["--help"]:
            parse(rest[2], rest[3:])
    elif rest[1].startswith("unclip_jax."):
        parse(rest[1].removeprefix("unclip_jax."), rest[2:])
    else:
        module = ROOT / (rest[1].replace(".", "/") + ".py")
        assert module.is_file() or importlib.util.find_spec(rest[1]), rest[1]


def check_pip(rest: list[str]) -> None:
    assert rest[0] == "install"
    if rest[1] == "-r":
        assert (ROOT / rest[2]).is_file(), rest[2]
    elif match := re.fullmatch(r"\.(?:\[(.+)\])?", rest[-1]):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = (match[1] or "app").split(",")
        assert set(extras) <= {*project["optional-dependencies"]}, extras


def check_launcher(program: str, rest: list[str], parse: Callable) -> None:
    text = (ROOT / program).read_text()
    python = next((i for i, word in enumerate(rest) if word in PYTHONS), None)
    if python is not None:
        check_command(rest[python:], parse)
        rest = rest[:python]
    elif rest and rest[0] == "run":
        command = rest[1] if rest[1] in COMMANDS else "train"
        parse(command, [word for word in rest[1:] if word != command])
        return
    for word in rest:
        if word in ("create", "delete"):  # what follows is for gcloud
            break
        known = not word.startswith("-") or re.search(rf"{word}[ )]", text)
        assert known, f"{program} has no {word}"


# The entry points were imported by other tests, and run again as __main__.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@pytest.fixture
def parse(monkeypatch):
    """(command, flags) -> parses them as the command does, and runs nothing."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    run = command_line.run
    parsed = []

    def parse_only(main, **options):
        def nothing(args):
            parsed.append(args)

        if "--help" not in sys.argv:
            run(nothing, **options)
        raise SystemExit(0)

    monkeypatch.setattr(command_line, "run", parse_only)

    def parse(command, flags):
        with pytest.raises(SystemExit) as stop:
            main_module.main(["unclip", command, *flags])
        assert stop.value.code in (0, None), f"{command} {flags} is refused"
        assert parsed or "--help" in flags

    return parse


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_shell_commands(page, parse, capsys):
    """Blocks marked bash, and `python ...` in prose."""
    text = read(page)
    shell = [
        (block.where, block.text)
        for block in blocks(page, text)
        if block.language == "bash" and not block.reason
    ]
    whole = re.compile(r"(python -m|unclip) (?!.*\.\.\.).* --")
    inline = [(page, code) for code in inline_code(text) if whole.match(code)]
    for where, commands in shell + inline:
        for words in simple_commands(commands):
            try:
                check_command(words, parse)
            except (AssertionError, OSError) as error:
                message = capsys.readouterr().err or error
                pytest.fail(f"{where}: {shlex.join(words)}: {message}")


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_labeled(page):
    languages = ("bash", "python", "text", "bibtex", "mermaid")
    for block in blocks(page, read(page)):
        assert block.language in languages, f"{block.where}: {block.language!r}"
        if block.language == "text":
            hidden = re.search(r"^(python|unclip|make|pip|launch/)\b", block.text, re.M)
            assert not hidden, f"{block.where}: mark these commands as bash"
    indented = re.search(r"(?:^|\n\n) {4}(python|make|launch/|pip)", prose(read(page)))
    assert not indented, f"{page}: fence the indented {indented[1]}... as bash"


def snippets(page: str) -> list[Block]:
    return [b for b in blocks(page, read(page)) if b.language == "python"]


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)])
def test_python_blocks(page):
    """Those of one page build on one another."""
    source = "\n".join(block.text for block in snippets(page))
    tree = ast.parse(source)
    undefined = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "-q"]
        + ["--output-format=concise", "-"],
        input=source,
        capture_output=True,
        text=True,
    )
    assert undefined.returncode == 0, f"{page}: {undefined.stdout}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{page}: {alias.name}"
        elif isinstance(node, ast.Call):
            check_call(page, node)


def check_call(page: str, node: ast.Call) -> None:
    """`UnCLIP.f(...)` and `model.f(...)` are calls that f takes."""
    from unclip_jax import UnCLIP

    function = node.func
    owner = getattr(getattr(function, "value", None), "id", None)
    if owner not in ("UnCLIP", "model"):
        return
    method = getattr(UnCLIP, function.attr, None)
    assert callable(method), f"{page}: UnCLIP has no {function.attr}"
    bound = inspect.signature(method)
    first = ["self"] if owner == "model" else []
    keywords = {k.arg: None for k in node.keywords if k.arg}
    try:
        bound.bind(*first, *node.args, **keywords)
    except TypeError as error:
        pytest.fail(f"{page}: {ast.unparse(node)}: {error}")


def all_flags() -> set[str]:
    modules = [importlib.import_module(f"unclip_jax.{name}") for name in COMMANDS]
    flags = {flag for m in modules for flag in m.FLAGS} | {*distributed.FLAGS}
    return flags | {"config", "workdir", "help"}


def elsewhere() -> str:
    """What may use flags of its own: launchers, benchmarks, the soak."""
    files = [p for p in (ROOT / "launch").rglob("*") if p.is_file()]
    files += [*(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").glob("*.py")]
    return "\n".join(p.read_text(encoding="utf-8", errors="ignore") for p in files)


def test_flags_in_prose():
    known, others = all_flags(), elsewhere()
    for page in PAGES:
        for code in inline_code(read(page)):
            for flag in re.findall(r"(?:^| )--([a-z]\w*(?:[-\w])*)", code):
                fine = flag in known or f"--{flag}" in others
                assert fine, f"{page}: no command has the flag --{flag} ({code})"


def test_config_keys_in_prose():
    """`--config.a.b=...` names a key of at least one config."""
    paths = set((ROOT / "configs").rglob("*.py")) - {ROOT / "configs/common.py"}
    configs = [complete(config_lib.load(str(path))) for path in paths]
    for page in PAGES:
        for code in inline_code(read(page)):
            for path in re.findall(r"--config\.([\w.]+)", code):
                fine = any(has_key(config, path.split(".")) for config in configs)
                assert fine, f"{page}: no config has {path}"


def complete(config):
    """With every key that a flag may name."""
    keys = {"stage": train, "clip": embed, "target": align}
    module = next((m for key, m in keys.items() if key in config), evaluate)
    return config_lib.with_defaults(config, module.defaults(config), required=True)


def has_key(config, keys) -> bool:
    """Whether config.a.b exists; a key in capitals stands for any."""
    if not keys:
        return True
    if not hasattr(config, "keys"):
        return False
    first = [*config] if keys[0].isupper() else [k for k in config if k == keys[0]]
    return any(has_key(config[key], keys[1:]) for key in first)


def test_files_in_prose():
    """Files of the repository; those of tests may leave out tests/."""
    ours = r"(?:configs|docs|launch|tests|unclip_jax)/[\w./*-]*"
    tests = rf"(?:{'|'.join(ROOMS)})/[\w/]+\.py"
    for page in PAGES:
        for code in inline_code(read(page)):
            match = re.match(rf"({ours}|{tests})(?::\w+)?$", code)
            if match and not match[1].endswith("NAME.py"):
                path = match[1].strip("/")
                found = [*ROOT.glob(path), *(ROOT / "tests").glob(path)]
                assert found, f"{page}: {path} does not exist"


def test_names_in_files():
    """`NAME` in `path/file.py`: the file has the name."""
    count = 0
    for page in PAGES:
        text = " ".join(prose(read(page)).split())
        for name, path in re.findall(r"`(\w+)`,? (?:in|of) `([\w/]+\.py)`", text):
            if (ROOT / path).is_file():
                words = re.findall(r"\w+", read(path))
                assert name in words, f"{page}: {path} has no {name}"
                count += 1
    assert count >= 3


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 160, "docs/ has room for it"


def test_links():
    for page in PAGES:
        folder = (ROOT / page).parent
        for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", prose(read(page))):
            if link and not re.match(r"https?://", link):
                assert (folder / link).exists(), f"{page}: {link} does not exist"


def test_sources_in_prose():
    """`source="x", path=...` are options that the source has."""
    count = 0
    for page in PAGES:
        for code in inline_code(read(page)):
            if not re.match(r'source="', code):
                continue
            call = ast.parse(f"dict({code})", mode="eval").body
            options = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
            module, name = sources.SOURCES[options.pop("source")]
            keywords = sources.parameters(
                getattr(importlib.import_module(module), name)
            )
            config_lib.check_keys(options, keywords, f"{page}: {code}")
            count += 1
    assert count >= 6


@pytest.mark.parametrize(
    "command, error",
    [
        ("python -m unclip_jax.sample --model=a --out=b.png --promt=c", "promt"),
        ("python -m unclip_jax.train --config=configs/none.py --workdir=a", "none.py"),
        ("unclip train --config=configs/fid.py --workdir=a --config.stpes=1", "stpes"),
        ("make coffee", "coffee"),
        ("launch/local.sh --many 2 python -m unclip_jax.train --help", "--many"),
        ("pip install -r requirements-none.txt", "requirements-none"),
        ('pip install ".[none]"', "none"),
        ("frobnicate", "frobnicate"),
    ],
)
def test_a_mistake_is_found(command, error, parse, capsys):
    (words,) = simple_commands(command)
    with pytest.raises((AssertionError, OSError)) as caught:
        check_command(words, parse)
    assert error in f"{caught.value} {capsys.readouterr().err}"


def test_blocks_and_commands_are_read():
    page = "a\n\n<!-- not run: a reason -->\n```bash\nx\n```\n\n```text\ny\n```\n"
    first, second = blocks("page", page)
    assert (first.reason, first.text, second.reason) == ("a reason", "x\n", "")
    assert second.where == "page:8"
    line = "(export A=1; B=2 python -m x \\\n  --y) && make z # comment\n"
    assert list(simple_commands(line)) == [
        ["export", "A=1"],
        ["python", "-m", "x", "--y"],
        ["make", "z"],
    ]
    assert inline_code("a `b\nc` d") == ["b c"]
