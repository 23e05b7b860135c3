"""What `sample` reads and writes, around a model that is given."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from unclip_jax import config as config_lib
from unclip_jax import sample as entry
from unclip_jax.generation import command


def arguments(**changes):
    values = {
        name: None if default is config_lib.REQUIRED else default
        for name, (default, _) in entry.FLAGS.items()
    }
    values.update(model="exports/tiny", prior_steps=3, decoder_steps=3)
    return types.SimpleNamespace(**{**values, **changes})


@pytest.fixture(autouse=True)
def given(monkeypatch, model):
    monkeypatch.setattr(command.UnCLIP, "load", lambda *args, **options: model)


def test_one_prompt_makes_one_plain_picture(tmp_path, model, capsys):
    out = tmp_path / "heart.png"
    command.sample(arguments(prompt=["a red heart ❤"], seed=4, out=str(out)))
    with Image.open(out) as image:
        drawn = np.asarray(image)
        text = image.text
    expected = model.text2image(
        ["a red heart ❤"], seed=4, prior_steps=3, decoder_steps=3
    )
    np.testing.assert_array_equal(drawn, expected[0])
    assert text["prompt"] == "a red heart ❤" and text["seed"] == "4"
    settings = json.loads(text["settings"])
    assert settings["prior_guidance"] == 4.0 and settings["mode"] == "text2image"
    assert settings["eta"] == 0.0
    said = capsys.readouterr()
    assert "compiling" in said.err and "1/1" in said.err
    assert "1 pictures in" in said.out


def test_several_make_a_grid_or_a_folder(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a blue cat\n\n  a dog \n")
    args = {"prompt": ["a fox"], "prompts_file": str(prompts)}
    command.sample(arguments(**args, out=str(tmp_path / "x.png")))
    with Image.open(tmp_path / "x.png") as grid:
        assert grid.size[0] > 2 * 96
        assert grid.text["prompt"] == "a fox\na blue cat\na dog"
    out = tmp_path / "folder"
    command.sample(arguments(**args, samples=2, out=str(out)))
    names = sorted(p.name for p in out.iterdir())
    assert names == [*(f"{i:06d}.png" for i in range(6)), "grid.png"]
    with Image.open(out / "000003.png") as image:
        assert image.size == (8, 8)
        assert image.text["prompt"] == "a blue cat" and image.text["index"] == "3"


def test_variations_of_a_file(tmp_path, images):
    Image.fromarray(images[0]).save(tmp_path / "in.png")
    args = {"mode": "variations", "image": [str(tmp_path / "in.png")], "samples": 2}
    command.sample(arguments(**args, out=str(tmp_path / "out")))
    with Image.open(tmp_path / "out" / "000001.png") as image:
        assert image.text["prompt"] == "in.png"
        assert json.loads(image.text["settings"])["eta"] == 1.0


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({}, ValueError, "no prompts"),
        ({"prompts_file": "none.txt"}, FileNotFoundError, "none.txt"),
        ({"mode": "dream"}, ValueError, "--mode 'dream'"),
        ({"mode": "variations"}, ValueError, "needs --image"),
        ({"samples": 0, "prompt": ["a"]}, ValueError, "--samples"),
        ({"out": "x.gif", "prompt": ["a"]}, ValueError, "must be a .png file"),
        ({"decoder_steps": 0, "prompt": ["a"]}, ValueError, "decoder steps"),
    ],
)
def test_mistakes(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        command.sample(arguments(**{"out": str(tmp_path / "x.png"), **changes}))
    assert not (tmp_path / "x.png").exists()


def test_command_line_mistakes_exit_with_two(tmp_path, capsys):
    def exit_of(*flags):
        with pytest.raises(SystemExit) as stop:
            config_lib.run(
                entry.main,
                config=False,
                extra_flags=entry.FLAGS,
                argv=["sample", f"--out={tmp_path / 'x.png'}", *flags],
            )
        return stop.value.code, capsys.readouterr().err

    code, said = exit_of("--prompt=a cat")
    assert code == 2 and "--model is required" in said
    code, said = exit_of("--model=x", "--prompt=a", "--prior_guidance=nan")
    assert code == 2 and "prior guidance must be a finite number" in said
    code, _ = exit_of("--model=x", "--prompt=a", "--decoder_steps=3", "--prior_steps=3")
    assert code == 0 and (tmp_path / "x.png").is_file()
