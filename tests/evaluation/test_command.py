"""The entry point's mistakes, and that the runner asks UnCLIP for what it offers."""

import inspect
import pathlib

import pytest

from unclip_jax import command_line, evaluate
from unclip_jax.evaluation.config import GENERATION_KEYS
from unclip_jax.generation import UnCLIP

FILE = pathlib.Path(__file__).parents[2] / "configs/icons/eval.py"


def fail(capsys, *flags):
    with pytest.raises(SystemExit) as exit_:
        argv = ["evaluate", f"--config={FILE}", *flags]
        command_line.run(
            evaluate.main,
            defaults=evaluate.defaults,
            extra_flags=evaluate.FLAGS,
            argv=argv,
        )
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1, error
    return error


def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path):
    work = f"--workdir={tmp_path / 'out'}"
    nowhere = f"--config.model={tmp_path / 'none'}"
    assert "workdir" in fail(capsys, nowhere)
    assert "unclip_jax.export" in fail(capsys, nowhere, work)
    assert "'decoder_steps'" in fail(capsys, work, "--config.generation.decodr_steps=3")
    few = fail(capsys, nowhere, work, "--config.count=50")
    assert "r_precision" in few and "at least 100" in few
    assert not (tmp_path / "out").exists()


def test_unclip_takes_what_the_config_may_set():
    offered = inspect.signature(UnCLIP.text2image).parameters
    assert {*GENERATION_KEYS, "prompts", "seed", "first"} <= {*offered}
