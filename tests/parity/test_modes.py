"""Every mode of every published folder draws, or is refused by name, as docs say.

The table is docs/latent.md's.

What is drawn is compared with diffusers' pipelines elsewhere in this folder; here each
of its cells is called, on tiny folders.
"""

import pathlib
import re
import types

import numpy as np
import pytest

from tests.parity import kandinsky_pipeline as kandinsky_tiny
from tests.parity import stable_pipeline as stable_tiny
from tests.parity.conftest import CAPTIONS
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.cli.command import sample
from unclip_jax.images import read_image, save_image
from unclip_jax.sample import FLAGS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "latent.md"
PROMPTS = list(CAPTIONS[:2])
DIM, FEW = kandinsky_tiny.SIZES.embed_dim, {"steps": 2}
PRIOR = {"steps": 2, "num_candidates": 1}
WIDE = {"height": 32, "width": 64}
TEXT = {"prior_steps": 2, "decoder_steps": 2, "num_candidates": 1}
SMALL = {  # Stable unCLIP's UNet, of half the layers
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": (2, 4),
}
# What a cell of the table says -> what the message says; other cells are drawn.
REFUSALS = {
    "no prior": "has no prior",
    "no image encoder": "has no image encoder",
    "no text embedding": "makes states, but no embedding",
    "no captions": "sees no caption",
    "no noise": "takes embeddings without noise",
}


def images():
    shape = 2, 20, 24, 3
    return list(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))


def embeddings():
    return np.random.default_rng(1).standard_normal((2, DIM)).astype(np.float32)


def mask(model):
    hole = np.zeros((model.draw_size, model.draw_size), bool)
    hole[4:] = True
    return hole


def draw_by_each_sampler(model, **hint):
    names = ("ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "heun")
    z = embeddings()
    return np.stack([model.decode(z, sampler=n, **FEW, **hint) for n in names])


# The table's rows -> (model, hint) -> what is drawn, or is to be refused.
MODES = {
    "text2image": lambda m, **hint: m.text2image(PROMPTS, **TEXT, **hint),
    "text2image, negative_prompt": lambda m, **hint: m.text2image(
        PROMPTS, negative_prompt="a dog", **TEXT, **hint
    ),
    "sample_embeddings": lambda m, **_: m.sample_embeddings(
        PROMPTS, start=embeddings(), strength=0.6, **PRIOR
    ),
    "variations": lambda m, **hint: m.variations(images(), **FEW, **hint),
    "variations, prompts": lambda m, **hint: m.variations(
        images(), prompts=PROMPTS, **FEW, **hint
    ),
    "interpolate": lambda m, **hint: m.interpolate(
        *([i] for i in images()),
        frames=2,
        **FEW,
        **{name: array[:1] for name, array in hint.items()},
    ),
    "text_diff": lambda m, **hint: m.text_diff(
        images(), "a photo", "a dog", thetas=(0, 0.2), **FEW, **hint
    ),
    "invert": lambda m, **hint: m.invert(images(), **FEW, **hint)[1],
    "reconstruct": lambda m, **hint: m.reconstruct(images(), **FEW, **hint),
    "inpaint": lambda m, **hint: m.inpaint(images(), mask(m), **FEW, **hint),
    "inpaint, prompt": lambda m, **hint: m.inpaint(
        images(), mask(m), "a dog", prior=PRIOR, **FEW, **hint
    ),
    "img2img": lambda m, **hint: m.img2img(images(), strength=0.6, **FEW, **hint),
    "img2img, prompts": lambda m, **hint: m.img2img(
        images(), PROMPTS, strength=0.6, prior=PRIOR, **FEW, **hint
    ),
    "emb2emb": lambda m, **hint: m.emb2emb(
        images(), PROMPTS, strength=0.6, prior=PRIOR, **FEW, **hint
    ),
    "zero_shot": lambda m, **_: m.zero_shot(m.fit_for_clip(images()), PROMPTS),
    "decode": lambda m, **hint: m.decode(embeddings(), **FEW, **hint),
    "decode, prompts": lambda m, **hint: m.decode(embeddings(), PROMPTS, **FEW, **hint),
    "decode, noise_level": lambda m, **hint: m.decode(
        embeddings(), noise_level=50, **FEW, **hint
    ),
    "decode, height and width": lambda m, **hint: m.decode(
        embeddings(),
        **WIDE,
        **FEW,
        **{name: array[:, :32] for name, array in hint.items()},
    ),
    "decode, tile": lambda m, **hint: m.decode(embeddings(), tile=32, **FEW, **hint),
    "decode, sampler": draw_by_each_sampler,
}


def table():
    """{folder: {mode: what its cell says}} of the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| mode |"))
    rows = [[cell.strip() for cell in lines[head].strip("|").split("|")]]
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    _, *folders = rows[0]
    return {
        folder.strip("`"): {row[0].replace("`", ""): row[i] for row in rows[1:]}
        for i, folder in enumerate(folders, 1)
    }


TABLE = table()


@pytest.fixture(scope="module")
def folders(kandinsky, tmp_path_factory):
    """{column of the table: what UnCLIP.load takes}."""
    root = tmp_path_factory.mktemp("modes")
    prior, decoder = kandinsky.folders
    parts = kandinsky.decoder.components
    inpainter = parts | {"unet": kandinsky_tiny.make_unet(in_channels=9)}
    depth = {"in_channels": 8, "addition_embed_type": "image_hint"}
    guided = parts | {
        "unet": kandinsky_tiny.make_unet(**depth),
        "movq": kandinsky_tiny.make_movq(8),
    }
    pipelines = {
        "decoder-inpaint": diffusers.KandinskyV22InpaintPipeline(**inpainter),
        "controlnet-depth": diffusers.KandinskyV22ControlnetPipeline(**guided),
    }
    for make, name in (
        (stable_tiny.make_stable, "2-1-unclip"),
        (stable_tiny.make_stable_text, "StableUnCLIPPipeline"),
    ):
        pipelines[name] = make(prior / "tokenizer")
        pipelines[name].register_modules(unet=stable_tiny.make_unet(**SMALL))
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(root / name)
    stable = {name: root / name for name in ("2-1-unclip", "StableUnCLIPPipeline")}
    return {
        "kandinsky-2-2-decoder": [prior, decoder],
        "decoder-inpaint": [prior, root / "decoder-inpaint"],
        "controlnet-depth": [prior, root / "controlnet-depth"],
        **stable,
    }


def test_the_table_has_each_mode():
    assert len(TABLE) == 5
    for cells in TABLE.values():
        assert cells.keys() == MODES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_each_mode_is_as_the_table_says(folders, name):
    model = UnCLIP.load(folders[name], batch_size=2)
    hint = {}
    if model.stack.part("decoder").module.extra == "hint":
        shape = 2, model.draw_size, model.draw_size, 3
        hint["hint"] = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    for mode, cell in TABLE[name].items():
        if cell in REFUSALS:
            with pytest.raises((ValueError, FileNotFoundError)) as error:
                MODES[mode](model, **hint)
            message = str(error.value)
            assert re.search(REFUSALS[cell], message) and "\n" not in message, mode
            continue
        assert cell in ("yes", "with `hint`"), f"{mode}: {cell}"
        drawn = MODES[mode](model, **hint)
        assert np.isfinite(drawn).all() and np.std(drawn) > 0, mode
        if drawn.dtype == np.uint8:
            sides = (32, 64) if "height" in mode else (model.draw_size,) * 2
            assert drawn.shape[-3:] == (*sides, 3), mode
        if cell == "with `hint`":
            with pytest.raises(ValueError, match="draws after a hint"):
                MODES[mode](model)


@pytest.mark.slow
def test_the_command_takes_both_folders_with_a_comma(folders, tmp_path):
    """And a hint for all of what is drawn, and another size."""
    save_image(tmp_path / "in.png", images()[0], {})
    save_image(tmp_path / "depth.png", images()[1], {})
    unset = {k: v[0] if not isinstance(v[0], type) else None for k, v in FLAGS.items()}
    given = {
        "model": ",".join(map(str, folders["controlnet-depth"])),
        "image": [str(tmp_path / "in.png")] * 2,
        "hint": [str(tmp_path / "depth.png")],
        "decoder_steps": 2,
        "batch_size": 8,
        "debug": False,
        **WIDE,
    }
    prompted = {"prompt": [PROMPTS[0]], "prior_steps": 2, "strength": 0.5}
    for mode, more in (
        ("variations", {}),
        ("img2img", prompted),
        ("emb2emb", prompted),
    ):
        out = tmp_path / mode
        flags = {**unset, **given, **more, "mode": mode, "out": str(out)}
        sample(types.SimpleNamespace(**flags))
        assert read_image(out / "000001.png").shape == (32, 64, 3)
    flags |= {"hint": given["hint"] + given["image"][:1] + given["hint"]}
    with pytest.raises(ValueError, match="--hint names 2 images: give one for all"):
        sample(types.SimpleNamespace(**{**flags, "out": str(tmp_path / "other")}))
