"""Unusual prompts, pictures and numbers: the right result, or a clear error.

With the real tokenizer, through the public class and the command.
"""

import numpy as np
import pytest
from PIL import Image

from tests.generation.conftest import make_model
from unclip_jax import command_line
from unclip_jax import sample as entry
from unclip_jax.errors import UsageError
from unclip_jax.generation import checks
from unclip_jax.generation.cli import command
from unclip_jax.generation.loading import Stack
from unclip_jax.images import read_image, read_metadata
from unclip_jax.tokenizer import train_tokenizer

FAST = {"prior_steps": 2, "decoder_steps": 2}
LENGTH = 12
PROMPTS = {
    "empty": "",
    "10,000 words": "a red heart " * 3333 + "heart",
    "one endless word": "a" * 50_000,
    "Chinese": "白色背景上的红心",
    "Arabic": "قلب أحمر على خلفية بيضاء",
    "emoji": "❤️👩‍👩‍👧‍👦 🏳️‍🌈",
    "two lines and a zero": "a heart\n\tand\x00 a cat",
}


@pytest.fixture(scope="module")
def stack(resized):
    tokenizer = train_tokenizer(["a red heart on white"] * 9, None, 540, LENGTH)
    fields = {
        "vocab_size": tokenizer.vocab_size,
        "context_length": LENGTH,
        "eot_id": tokenizer.eot_id,
    }
    kinds = ("clip", "prior", "decoder")
    parts = {kind: resized(kind, i, **fields) for i, kind in enumerate(kinds)}
    return Stack("exports/tiny", parts, tokenizer)


@pytest.fixture(scope="module")
def model(stack):
    return make_model(stack)


@pytest.fixture(scope="module")
def drawn(model):
    return model.text2image(list(PROMPTS.values()), **FAST)


@pytest.fixture
def run(monkeypatch, model):
    """flags -> exit code of the command, around the tiny model."""
    monkeypatch.setattr(command.UnCLIP, "load", lambda *args, **options: model)

    def run(*flags):
        steps = [f"--{name}={n}" for name, n in FAST.items()]
        if not any("--mode" in flag for flag in flags):
            flags = (*steps, *flags)
        argv = ["sample", "--model=exports/tiny", "--batch_size=8", *flags]
        with pytest.raises(SystemExit) as stop:
            command_line.run(
                entry.main, config=False, extra_flags=entry.FLAGS, argv=argv
            )
        return stop.value.code

    return run


def test_any_text_draws_a_picture_of_its_own(drawn):
    assert drawn.shape == (len(PROMPTS), 8, 8, 3) and drawn.dtype == np.uint8
    assert len({picture.tobytes() for picture in drawn}) == len(PROMPTS)


def test_what_is_too_long_is_its_beginning(model):
    long = PROMPTS["10,000 words"]
    texts = [long, " ".join(long.split()[:30]), "   ", ""]
    embeddings = model.encode_text(texts)
    np.testing.assert_array_equal(embeddings[0], embeddings[1])
    np.testing.assert_array_equal(embeddings[2], embeddings[3])
    assert np.isfinite(embeddings).all()


@pytest.mark.slow
def test_the_command_draws_and_records_any_text(run, drawn, tmp_path):
    texts = [text for text in PROMPTS.values() if "\n" not in text]
    for suffix in ("png", "webp"):
        out = tmp_path / suffix
        flags = [f"--out={out}", f"--format={suffix}"]
        assert run(*flags, *(f"--prompt={text}" for text in texts)) == 0
        for i, text in enumerate(texts):
            path = out / f"{i:06d}.{suffix}"
            assert read_metadata(path)["prompt"] == text
            difference = np.abs(read_image(path).astype(int) - drawn[i])
            assert difference.max() <= 1
        grid = read_image(out / "grid.png")
        assert max(grid.shape) < 1000  # long captions are cut


@pytest.mark.slow
def test_a_file_of_prompts_in_any_script(run, tmp_path):
    texts = [PROMPTS["Chinese"], PROMPTS["Arabic"]]
    file = tmp_path / "prompts.txt"
    file.write_text("\r\n".join(texts), encoding="utf-8-sig")  # as Notepad writes
    assert run(f"--prompts_file={file}", f"--out={tmp_path / 'out'}") == 0
    for i, text in enumerate(texts):
        assert read_metadata(tmp_path / "out" / f"{i:06d}.png")["prompt"] == text
    file.write_text("un c\u0153ur", encoding="utf-16")
    assert run(f"--prompts_file={file}", f"--out={tmp_path / 'other'}") == 2
    assert not (tmp_path / "other").exists()


def write_pictures(folder):
    """The same picture, left half red and right half white, as files of many kinds."""
    picture = np.full((8, 8, 3), 255, np.uint8)
    picture[:, :4] = 255, 0, 0
    whole = Image.fromarray(picture)
    whole.save(folder / "plain.png")
    big = whole.resize((64, 64), Image.Resampling.NEAREST)
    big.convert("CMYK").save(folder / "cmyk.jpg", quality=100, subsampling=0)
    whole.quantize(4).save(folder / "palette.png")
    clear = np.dstack([picture, np.where(picture[..., 1] > 0, 0, 255)]).astype(np.uint8)
    clear[:, 4:, :3] = 0, 0, 90  # what is under full transparency is not to be seen
    Image.fromarray(clear).save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    turned = big.transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "rotated.jpg", exif=exif, quality=100, subsampling=0)
    return [folder / name for name in sorted(p.name for p in folder.iterdir())]


@pytest.mark.slow
def test_pictures_of_every_kind_are_the_same_picture(run, model, tmp_path):
    (tmp_path / "in").mkdir()
    files = write_pictures(tmp_path / "in")
    plain = read_image(tmp_path / "in" / "plain.png")
    for file in files:
        difference = np.abs(read_image(file, 8).astype(int) - plain)
        assert difference.mean() <= 6, file.name  # JPEG's and CMYK's own losses
    out = tmp_path / "out"
    flags = ["--mode=reconstruct", "--decoder_steps=2", f"--out={out}"]
    assert run(*flags, *(f"--image={file}" for file in files)) == 0
    assert len([*out.glob("0*.png")]) == len(files)


def test_grey_of_16_bits_and_a_single_pixel(run, tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    read = read_image(tmp_path / "deep.png", 8)
    np.testing.assert_allclose(read[..., 0], ramp / 257.0, atol=0.51)
    Image.new("RGB", (1, 1), (7, 8, 9)).save(tmp_path / "dot.png")
    out = tmp_path / "out"
    flags = ["--mode=variations", "--decoder_steps=2", f"--out={out}"]
    images = (f"--image={tmp_path / name}.png" for name in ("deep", "dot"))
    assert run(*flags, *images) == 0
    assert len([*out.glob("0*.png")]) == 2


@pytest.mark.parametrize("kind", ["truncated.jpg", "truncated.png", "text", "empty"])
def test_broken_pictures_are_named(run, tmp_path, capsys, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = tmp_path / (kind if "." in kind else f"{kind}.png")
    if kind.startswith("truncated"):
        Image.fromarray(noise).save(file)
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
    else:
        file.write_text("no picture" if kind == "text" else "")
    out = tmp_path / "out.png"
    assert run("--mode=variations", f"--image={file}", f"--out={out}") == 2
    said = capsys.readouterr().err
    assert not out.exists()
    assert file.name in said and "not a readable image" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--prior_guidance=nan"], "prior guidance must be a finite number"),
        (["--decoder_guidance=nan"], "decoder guidance must be a finite number"),
        (["--prior_steps=0"], "prior steps must be a whole number from 1"),
        (["--decoder_steps=0"], "decoder steps must be a whole number from 1"),
        (["--prompt=broken \udcff bytes"], "not valid Unicode"),
    ],
)
def test_impossible_values_are_refused(run, tmp_path, capsys, flags, message):
    out = tmp_path / "out.png"
    assert run("--prompt=a heart", f"--out={out}", *flags) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_names_of_other_libraries_are_answered_with_ours(model, images):
    for name, meant in {
        "guidance_scale": "'prior_guidance' or 'decoder_guidance'?",
        "num_inference_steps": "'prior_steps' or 'decoder_steps' or",
        "decoder_stpes": "'decoder_steps'",
    }.items():
        with pytest.raises(TypeError, match=f"'{name}': did you mean {meant}"):
            model.text2image("a heart", **{name: 3})
    with pytest.raises(TypeError, match="'decoder_guidance': did you mean 'guidance'"):
        model.variations(images[:1], decoder_guidance=3)
    with pytest.raises(TypeError, match="'count': the options are guidance, steps,"):
        model.interpolate(images[:1], images[:1], count=3)


def test_images_may_be_pillow_s_or_files(images, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(images[0]).save(path)
    transparent = Image.fromarray(images[0]).convert("RGBA")
    for given in (images[0], Image.fromarray(images[0]), transparent, path, str(path)):
        for values in (given, [given]):
            (read,) = checks.image_list(values)
            np.testing.assert_array_equal(read, images[0])
    with pytest.raises(FileNotFoundError):
        checks.image_list("nowhere.png")
    with pytest.raises(UsageError, match="an image of Pillow's or the name of a file"):
        checks.image_list([images[0] / 255])
