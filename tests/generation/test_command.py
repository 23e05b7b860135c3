"""What `sample` reads and writes, around a model that is given."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from unclip_jax import command_line
from unclip_jax import sample as entry
from unclip_jax.gaussian import Gaussian
from unclip_jax.generation.cli import command, modes
from unclip_jax.images import read_image, read_metadata

FAST = {"prior_steps": 3, "decoder_steps": 3}


def arguments(**changes):
    values = {}
    for name, (default, _) in entry.FLAGS.items():
        given = default is not command_line.REQUIRED and not isinstance(default, type)
        values[name] = default if given else None
    values.update(model="exports/tiny", batch_size=8)
    if changes.get("mode", "text2image") == "text2image":
        values.update(FAST)
    return types.SimpleNamespace(**{**values, **changes})


@pytest.fixture(autouse=True)
def given(monkeypatch, model):
    monkeypatch.setattr(command.UnCLIP, "load", lambda *args, **options: model)


@pytest.fixture
def files(tmp_path, images):
    """Three pictures in a folder."""
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{name}.png" for name in "abc"]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    return list(map(str, paths))


@pytest.mark.slow
def test_one_prompt_makes_one_plain_picture(tmp_path, model, capsys):
    out = tmp_path / "heart.png"
    command.sample(arguments(prompt=["a red heart ❤"], seed=4, out=str(out)))
    expected = model.text2image(["a red heart ❤"], seed=4, **FAST)
    np.testing.assert_array_equal(read_image(out), expected[0])
    text = read_metadata(out)
    assert text["prompt"] == "a red heart ❤" and text["seed"] == "4"
    settings = json.loads(text["settings"])
    assert settings["mode"] == "text2image" and settings["eta"] == 0.0
    assert settings["drawn_with"]["prior"]["guidance"] == 4.0
    assert settings["drawn_with"]["decoder"] == {
        "sampler": "ddim",
        "steps": 3,
        "guidance": 8.0,
    }
    said = capsys.readouterr()
    assert "compiling" in said.err and "1/1" in said.err
    assert "decoder: steps 3, sampler ddim, guidance 8.0" in said.out
    assert "heart.png: 1 image\n" in said.out


@pytest.mark.slow
def test_several_make_a_grid(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a blue cat\n\n  a dog \n")
    args = {"prompt": ["a fox"], "prompts_file": str(prompts)}
    command.sample(arguments(**args, out=str(tmp_path / "x.webp"), columns=3))
    assert read_image(tmp_path / "x.webp").shape[1] > 3 * 96
    assert read_metadata(tmp_path / "x.webp")["prompt"] == "a fox\na blue cat\na dog"


@pytest.mark.slow
def test_a_folder_goes_on_where_it_was_stopped(tmp_path, model, capsys):
    out = tmp_path / "folder"
    prompts = [f"picture {chr(97 + i)}" for i in range(10)]
    args = arguments(prompt=prompts, out=str(out), processes=2, seed=5)
    args.process = 1
    command.sample(args)
    assert "2 of 10 images" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir())[-3:-1] == ["000008.png", "000009.png"]
    args.process = 0
    command.sample(args)
    assert "10 of 10 images" in capsys.readouterr().out and (out / "grid.png").is_file()
    expected = model.text2image(prompts, seed=5, **FAST)
    for i, picture in enumerate(expected):
        drawn = read_image(out / f"{i:06d}.png")
        assert np.abs(drawn.astype(int) - picture).max() <= 1
    assert read_metadata(out / "000003.png")["prompt"] == "picture d"
    kept = (out / "000000.png").stat().st_mtime_ns
    (out / "000001.png").unlink()
    command.sample(args)
    assert (out / "000001.png").is_file()
    assert (out / "000000.png").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="seed was 5, is 6"):
        command.sample(types.SimpleNamespace(**{**vars(args), "seed": 6}))


@pytest.mark.slow
def test_lists_of_pictures(tmp_path, model, images, files):
    folder = str(tmp_path / "in")
    drawn = tmp_path / "variations"
    changes = {"mode": "variations", "image": [folder], "samples": 2}
    command.sample(arguments(**changes, decoder_steps=3, out=str(drawn)))
    assert len([*drawn.glob("0*.png")]) == 6
    text = read_metadata(drawn / "000003.png")
    assert text["prompt"] == "b.png" and json.loads(text["settings"])["eta"] == 1.0
    changes = {"mode": "inpaint", "image": files[:1], "prompt": ["a cat"], **FAST}
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "inpaint.png"
    command.sample(arguments(**changes, mask=str(tmp_path / "mask.png"), out=str(out)))
    painted = read_image(out).astype(int)
    assert np.abs(painted[4:] - images[0][4:]).max() <= 1
    assert np.abs(painted[:4] - images[0][:4]).mean() > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, changes, pictures",
    [
        ("interpolate", {"frames": 3, "noise": "shared", "decoder_steps": 3}, 6),
        ("text_diff", {"target": "a cat", "thetas": "0,0.5", "decoder_steps": 3}, 9),
        ("pca", {"dims": "1,8", "decoder_steps": 3}, 9),
        ("zero_shot", {"label": ["cat", "big dog"]}, 3),
        ("typographic", {"label": ["cat", "dog"], "decoder_steps": 3}, 12),
    ],
)
def test_figures_of_pictures(
    tmp_path, monkeypatch, model, files, mode, changes, pictures
):
    stats = Gaussian(np.zeros(8), np.diag(np.arange(1.0, 9.0)))
    monkeypatch.setattr(type(model.stack), "embedding_statistics", lambda self: stats)
    out = tmp_path / mode
    command.sample(arguments(mode=mode, image=files, out=str(out), **changes))
    assert len([*out.glob("0*.png")]) == pictures and (out / "grid.png").is_file()


def test_a_figure_of_one_image_has_its_caption(tmp_path, files):
    out = tmp_path / "labels.png"
    command.sample(
        arguments(mode="zero_shot", image=files[:1], label=["cat", "dog"], out=str(out))
    )
    assert read_image(out).shape[0] > 96, "the image alone, without CLIP's labels"


@pytest.mark.parametrize(
    "mode, changes, pictures",
    [("conditioning", FAST, 6), ("guidance", {"scales": "2,4", **FAST}, 4)],
)
def test_figures_of_prompts(tmp_path, mode, changes, pictures):
    out = tmp_path / mode
    prompts = ["a cat", "the big dog"]
    command.sample(arguments(mode=mode, prompt=prompts, out=str(out), **changes))
    assert len([*out.glob("0*.png")]) == pictures
    first, second = (read_image(out / f"00000{i}.png") for i in (0, 1))
    assert (first != second).any()


def test_every_option_is_a_flag():
    for name, mode in modes.MODES.items():
        assert not {*mode.options} - {*entry.FLAGS}, name
    options = {flag for mode in modes.MODES.values() for flag in mode.options}
    assert {*entry.FLAGS} == options | {*command.COMMON} - {"debug"}


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({}, ValueError, "no prompts"),
        ({"prompts_file": "none.txt"}, FileNotFoundError, "none.txt"),
        ({"mode": "dream"}, ValueError, "--mode 'dream'"),
        ({"mode": "variations"}, ValueError, "needs --image"),
        ({"mode": "pca", "prompt": ["a"]}, ValueError, "--prompt means nothing .*dims"),
        ({"mode": "reconstruct", "image": ["no"]}, FileNotFoundError, "'no'"),
        ({"mode": "text_diff", "image": ["a"]}, ValueError, "needs --target"),
        ({"samples": 0, "prompt": ["a"]}, ValueError, "--samples"),
        ({"samples": -3, "prompt": ["a"]}, ValueError, "--samples"),
        ({"batch_size": 0, "prompt": ["a"]}, ValueError, "--batch_size"),
        ({"process": 2, "prompt": ["a"]}, ValueError, "--process must be from 0 to 0"),
        ({"out": "x.gif", "prompt": ["a"]}, ValueError, "must be a .png or .webp"),
        ({"format": "bmp", "prompt": ["a"]}, ValueError, "--format 'bmp'"),
        ({"decoder_steps": 0, "prompt": ["a"]}, ValueError, "decoder steps"),
        ({"eta": -1.0, "prompt": ["a"]}, ValueError, "eta must be a finite number"),
        ({"scale": 0, "prompt": ["a"]}, ValueError, "--scale must be at least 1"),
        ({"decoder_guidance": 1e308, "prompt": ["a"]}, ValueError, "decoder guidance"),
        (
            {"mode": "guidance", "prompt": ["a"], "scales": "1," * 1024 + "1"},
            ValueError,
            "one grid of 1,025 images",
        ),
        (
            {"mode": "guidance", "prompt": ["a"], "scales": "1,x"},
            ValueError,
            "numbers with commas",
        ),
    ],
)
def test_mistakes(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        command.sample(arguments(**{"out": str(tmp_path / "x.png"), **changes}))
    assert not (tmp_path / "x.png").exists()


def test_command_line_mistakes_exit_with_two(tmp_path, capsys):
    def exit_of(*flags):
        with pytest.raises(SystemExit) as stop:
            command_line.run(
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
    code, said = exit_of("--model=x", "--prompt=a", "--target=b")
    assert code == 2 and "--target means nothing to --mode=text2image" in said
    code, _ = exit_of("--model=x", "--prompt=a", "--decoder_steps=3", "--prior_steps=3")
    assert code == 0 and (tmp_path / "x.png").is_file()


@pytest.mark.parametrize(
    "out,problem",
    [
        ("there.png", "is there already: give --overwrite"),
        ("folder.png", "is a folder: name a file in it"),
        ("file/x.png", "cannot be written: "),
        ("x" * 300 + ".png", "cannot be written: File name too long"),
        ("file", "cannot be written: "),
    ],
)
def test_out_is_tried_before_anything_is_drawn(tmp_path, monkeypatch, out, problem):
    monkeypatch.setattr(command, "_load", None)  # and no model is loaded
    (tmp_path / "there.png").write_bytes(b"mine")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_bytes(b"mine")
    args = arguments(prompt=["a"], out=str(tmp_path / out))
    with pytest.raises(ValueError, match=problem):
        command.sample(args)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["file", "folder.png", "there.png"]
    assert (tmp_path / "there.png").read_bytes() == b"mine"


def test_what_may_be_overwritten_is_not_touched_before_it_is_drawn(tmp_path):
    out = tmp_path / "new" / "there.png"
    command.check_out(out, is_list=True, overwrite=False)
    assert out.parent.is_dir() and not [*out.parent.iterdir()]
    out.write_bytes(b"mine")
    command.check_out(out, is_list=True, overwrite=True)
    assert out.read_bytes() == b"mine"
    figure = tmp_path / "figure"
    command.check_out(figure, is_list=False, overwrite=False)
    (figure / "grid.png").touch()
    command.check_out(figure, is_list=True, overwrite=False)  # a list is continued
    with pytest.raises(ValueError, match="figure' is there already"):
        command.check_out(figure, is_list=False, overwrite=False)


def test_a_file_is_no_grid_of_thousands(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_load", None)
    args = arguments(prompt=["a"], samples=1001, out=str(tmp_path / "x.png"))
    with pytest.raises(ValueError, match="one grid of 1,001 images: give a folder"):
        command.sample(args)


def test_images_by_other_hands_do_not_count_as_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_load", None)
    (tmp_path / "000000.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="by other hands"):
        command.sample(arguments(prompt=["a"], out=str(tmp_path)))


def test_probabilities_are_printed(tmp_path, files, capsys):
    labels = {"label": ["cat", "dog"]}
    out = tmp_path / "labels.png"
    command.sample(arguments(mode="zero_shot", image=files, **labels, out=str(out)))
    lines = capsys.readouterr().out.splitlines()
    for file, line in zip(files, lines, strict=False):
        assert line.startswith(f"{file}: ") and line.count("%") == 2


@pytest.mark.slow
def test_a_small_image_is_enlarged(tmp_path, model):
    prompts, out = ["a red heart"], tmp_path / "x.png"
    command.sample(arguments(prompt=prompts, scale=5, out=str(out)))
    (small,) = model.text2image(prompts, **FAST)
    large = read_image(out)
    assert large.shape == (5 * small.shape[0], 5 * small.shape[1], 3)
    np.testing.assert_array_equal(large[2::5, 2::5], small)


@pytest.mark.parametrize("pixels, message", [(0, "has no white"), (255, None)])
def test_a_mask_with_opaque_alpha_is_read_by_its_white(
    tmp_path, files, pixels, message
):
    mask = np.full((8, 8, 4), 255, np.uint8)
    mask[:4, :, :3] = pixels
    mask[4:, :, :3] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = {"image": files[:1], "mask": str(tmp_path / "mask.png"), **FAST}
    args = arguments(mode="inpaint", **options, out=str(tmp_path / "x.png"))
    if message:
        with pytest.raises(ValueError, match=message):
            command.sample(args)
    else:
        command.sample(args)
        kept = read_image(tmp_path / "x.png").astype(int)[4:]
        assert np.abs(kept - read_image(files[0])[4:]).max() <= 1
