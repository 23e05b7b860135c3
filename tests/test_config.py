import dataclasses

import ml_collections
import pytest

from unclip_jax import command_line
from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError

FILE = """
import ml_collections

def get_config(words=""):
    c = ml_collections.ConfigDict()
    c.steps = 3
    c.words = words
    c.optimizer = dict(learning_rate=0.1, name="adam")
    return c
"""


@dataclasses.dataclass(frozen=True)
class Thing:
    width: int
    rate: float = 0.5
    sizes: tuple[int, ...] = ()
    name: str | None = None


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(FILE)
    return path


def call(*argv, main=None, **kwargs):
    """(exit code, namespace main was called with)."""
    seen = []

    def entry(args):
        seen.append(args)
        return main(args) if main else None

    with pytest.raises(SystemExit) as stop:
        command_line.run(entry, argv=["program", *map(str, argv)], **kwargs)
    return stop.value.code, seen[0] if seen else None


def test_build_makes_the_object_with_tuples():
    thing = config_lib.build(Thing, {"width": 3, "sizes": [1, 2]})
    assert thing == Thing(3, 0.5, (1, 2))


@pytest.mark.parametrize("annotation", [dict[str, float], list[str], tuple[int, ...]])
def test_the_type_of_a_container_is_not_that_of_what_it_holds(annotation):
    config_lib.check_type(annotation.__origin__(), annotation, "x")
    with pytest.raises(UsageError, match="x must be of type int or str, got 0.5"):
        config_lib.check_type(0.5, int | str | None, "x")


@pytest.mark.parametrize(
    "given,message",
    [
        ({"widht": 3}, "unknown key 'widht' in config.model: did you mean 'width'"),
        ({"rate": 0.1}, "config.model lacks 'width'"),
        ({"width": "3"}, "config.model.width must be of type int, got '3'"),
        ({"width": True}, "config.model.width must be of type int"),
        ({"width": 3, "name": 7}, "config.model.name must be of type str, got 7"),
        (7, "must be a mapping"),
    ],
)
def test_build_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        config_lib.build(Thing, given)


def test_overrides_reach_the_entry_point(file):
    code, args = call(
        f"--config={file}", "--workdir=w", "--config.optimizer.learning_rate=1e-4"
    )
    assert code == 0
    assert args.config.optimizer.learning_rate == 1e-4 and args.workdir == "w"


def test_a_key_may_have_the_name_of_a_method(file):
    defaults = dict(defaults=lambda _: {"thing": {"keys": "", "items": ""}})
    flags = "--config.thing.keys=a.npy", "--config.thing.items", "b.npy"
    code, args = call(f"--config={file}", "--workdir=w", *flags, **defaults)
    assert code == 0
    thing = args.config.thing
    assert thing["keys"] == "a.npy" and thing["items"] == "b.npy"


def test_words_reach_get_config(file):
    _, args = call(f"--config={file}:fast", "--workdir=w")
    assert args.config.words == "fast"


def test_flags_set_what_the_file_leaves_at_its_default(file):
    def defaults(config):  # a name of the file, or of a flag, decides which there are
        deep = {"depth": 2, "rate": None, "path": str} if config.words == "deep" else {}
        return {"thing": config_lib.defaults(Thing), "more": deep}

    flags = ["thing.rate=0.25", "more.depth=3", "more.rate=0.5", "more.path=7"]
    flags = [f"--config.{flag}" for flag in ["thing.name=x", *flags, "words=deep"]]
    _, args = call(f"--config={file}", "--workdir=w", *flags, defaults=defaults)
    assert args.config.thing.to_dict() == {"rate": 0.25, "name": "x"}
    more = {"depth": 3, "rate": 0.5, "path": "7"}
    assert args.config.more.to_dict() == more and args.config.words == "deep"


def test_a_default_is_no_key_of_another_section(file, capsys):
    options = dict(defaults=lambda _: {"thing": config_lib.defaults(Thing)})
    for flag, message in (
        ("thing.raet=1", "unknown key 'raet' in config.thing: did you mean 'rate'"),
        ("thing.rate.x=1", "config.thing.rate is a value, not a section"),
        ("thing.width=wide", "wide"),
    ):
        code, _ = call(f"--config={file}", "--workdir=w", f"--config.{flag}", **options)
        assert code == 2 and message in capsys.readouterr().err


def test_defaults_complete_what_is_left_out():
    assert config_lib.defaults(Thing) == dict(width=int, rate=0.5, sizes=(), name=None)
    known = {"thing": config_lib.defaults(Thing), "steps": 3}
    complete = config_lib.with_defaults({"steps": 4, "thing": {"rate": 1.0}}, known)
    assert complete == {"thing": dict(rate=1.0, sizes=(), name=None), "steps": 4}


@pytest.mark.parametrize(
    "flag,message",
    [
        ("--config.optimizer.learnig_rate=1", "did you mean 'learning_rate'"),
        ("--config.step=1", "did you mean 'steps'"),
        ("--config.steps=many", "many"),
        ("--workdirr=w", "workdirr"),
    ],
)
def test_mistyped_flags_end_with_2_and_the_nearest_name(file, capsys, flag, message):
    code, args = call(f"--config={file}", "--workdir=w", flag)
    error = capsys.readouterr().err
    assert code == 2 and args is None
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1


def test_a_missing_config_file_is_named(capsys, tmp_path):
    code, _ = call(f"--config={tmp_path}/nowhere.py", "--workdir=w")
    assert code == 2 and "nowhere.py' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text,message",
    [
        ("def get_config(:", "line 1: SyntaxError"),
        ("import nothing_of_this_name", "line 1: ModuleNotFoundError"),
        ("\n\ndef get_config():\n    return 1 / 0", "line 4: ZeroDivisionError"),
        ("x = 1", "does not define get_config"),
        ("def get_config(): return {}", "must return an ml_collections.ConfigDict"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(capsys, tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    assert call(f"--config={tmp_path}/mine.py", "--workdir=x")[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert "mine.py" in line


def test_required_flags_are_required(file, capsys):
    assert call(f"--config={file}")[0] == 2
    assert "workdir" in capsys.readouterr().err
    code, _ = call(config=False, extra_flags={"out": (command_line.REQUIRED, "a file")})
    assert code == 2 and "out" in capsys.readouterr().err


def test_mistakes_are_one_line_and_bugs_are_not(file, capsys):
    def mistake(args):
        raise UsageError("the number 3 is\ntoo small")

    flags = (f"--config={file}", "--workdir=w")
    assert call(*flags, main=mistake)[0] == 2
    assert "the number 3 is too small" in capsys.readouterr().err
    for bug in (RuntimeError("a bug"), ValueError("of this package, or a library")):
        with pytest.raises(type(bug), match=str(bug)):
            command_line.run(
                lambda args, bug=bug: (_ for _ in ()).throw(bug),
                argv=["program", *flags],
            )


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no tpu")])
def test_devices_that_are_not_there_are_one_line(file, capsys, monkeypatch, error):
    def devices(args):
        code = compile("raise error", "/jax/_src/xla_bridge.py", "exec")
        exec(code, {"error": error})

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert call(f"--config={file}", "--workdir=w", main=devices)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no devices with JAX_PLATFORMS=cuda" in line and str(error) in line


def test_interrupting_ends_with_130(file, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    assert call(f"--config={file}", "--workdir=w", main=interrupt)[0] == 130
    assert "run the same command" in capsys.readouterr().err


def test_help_shows_the_flags(file, capsys):
    assert call("--help")[0] == 0
    assert "--config.KEY=VALUE" in capsys.readouterr().out


def test_help_is_grouped(file, capsys):
    flags = {"out": (command_line.REQUIRED, "a file"), "seed": (0, "of randomness")}
    groups = {"Randomness": ("seed",)}
    assert call("--help", extra_flags=flags, groups=groups)[0] == 0
    listed = capsys.readouterr().out
    assert listed.index("--out") < listed.index("\nRandomness:\n  --seed")


def test_a_part_of_a_name_finds_its_flags(capsys):
    flags = {"decoder_guidance": (1.0, "of the decoder")}
    assert call("--guidance=3", config=False, extra_flags=flags)[0] == 2
    assert "Did you mean: decoder_guidance ?" in capsys.readouterr().err


def test_plain_is_json_able():
    config = ml_collections.ConfigDict({"a": (1, 2), "b": {"c": None}})
    assert config_lib.to_plain(config) == {"a": [1, 2], "b": {"c": None}}
    with pytest.raises(ValueError, match="config.f"):
        config_lib.to_plain({"f": print})
