"""A public CLIP's folder, from picture files and captions to embeddings."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from tests.parity import fid_programs
from unclip_jax.embedding.frozen_clip import FrozenCLIP
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.loading import load_stack
from unclip_jax.images import fit
from unclip_jax.interop import mapping, open_clip, public_clip, transformers_clip
from unclip_jax.interop.export import compare, export
from unclip_jax.tokenizer import (
    FILES,
    Tokenizer,
    copy_tokenizer,
    repair,
    train_tokenizer,
)

from .conftest import IMAGE, randomise

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CAPTIONS = ["a red heart", "", "Two  GREEN trees, it's old; " * 9]
# curly quotes, entities (once and twice), a ligature, full width, mojibake, an accent
SCRAPED = [
    "don\u2019t \u201cstop\u201d",
    "fish &amp; chips",
    "a &amp;lt; b",
    "\ufb01ne",
]
SCRAPED += ["\uff13 cats", "lâ€™été", "cafe\u0301  &eacute;\u00a0 x ", " \u2028 red"]
LENGTH, SIDE = 24, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CLIPModel, CLIPTokenizer and CLIPImageProcessor, saved by transformers."""
    root = tmp_path_factory.mktemp("public")
    ours = train_tokenizer(CAPTIONS * 3, root / "trained", 560, context_length=LENGTH)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        root / "trained", pad_token="!", model_max_length=LENGTH
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    tower |= {"num_hidden_layers": 2, "projection_dim": 24}
    config = transformers.CLIPConfig(
        text_config={
            **tower,
            "vocab_size": ours.vocab_size,
            "max_position_embeddings": LENGTH,
            "eos_token_id": 2,  # as the public configs say
        },
        vision_config={**tower, "image_size": SIDE, "patch_size": 8},
        projection_dim=24,
    )
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.4, 0.3],
    )
    for part in (
        tokenizer,
        processor,
        randomise(transformers.CLIPModel(config), 0),
    ):
        part.save_pretrained(root / "clip")
    return root / "clip"


@pytest.fixture(scope="module")
def expected(folder):
    """(images of several shapes, their image and text embeddings)."""
    rng = np.random.default_rng(0)
    shapes = ((40, 25, 3), (16, 16, 3), (17, 60, 3))
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    model = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    tokens = tokenizer(
        CAPTIONS, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        text = model.text_model(tokens["input_ids"]).pooler_output
        return (
            images,
            model.visual_projection(model.vision_model(pixels).pooler_output).numpy(),
            model.text_projection(text).numpy(),
        )


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json", "open_clip"])
def test_embeddings_are_theirs(folder, expected, tmp_path, form):
    if form == "vocab.json":  # the older form of a tokenizer
        tokenizer = folder.parent / "trained"
        names = [(tokenizer, "vocab.json"), (tokenizer, "merges.txt")]
        names += [(folder, f.name) for f in folder.glob("*") if "token" not in f.name]
        for source, name in names:
            (tmp_path / name).write_bytes((source / name).read_bytes())
        folder = tmp_path
    elif form == "open_clip":
        open_clip.save_open_clip(tmp_path, *transformers_clip.load_clip_model(folder))
        for file in folder.glob("token*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        folder = tmp_path
    clip = FrozenCLIP.load(folder, load_run=None, batch_size=3)
    images, *wanted = expected
    pixels = np.stack([fit(image, SIDE) for image in images])
    found = clip.embed(pixels, clip.tokenizer.encode(CAPTIONS))
    for name, theirs in zip(("clip_image", "clip_text"), wanted, strict=True):
        assert np.abs(theirs).max() > 0.1
        ours = np.asarray(found[name])[:3]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.programs
@pytest.mark.slow
def test_open_clip_itself_computes_the_same(folder, expected, tmp_path):
    """Through its front door, create_model_and_transforms and get_tokenizer."""
    if not (fid_programs.PROGRAMS / "open_clip").is_dir():
        pytest.skip(f"OpenCLIP is not in {fid_programs.PROGRAMS}: make test")
    part = public_clip.read_public_clip(folder)
    public_clip.write_public_clip(tmp_path / "clip", part, folder, "open_clip")
    images, *wanted = expected
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS + SCRAPED))
    theirs = fid_programs.reference("open_clip", tmp_path)
    for name, ours in zip(("clip_image", "clip_text"), wanted, strict=True):
        np.testing.assert_allclose(theirs[name][:3], ours, rtol=0, atol=1e-4)
    clip = FrozenCLIP.load(tmp_path / "clip", load_run=None, batch_size=8)
    pixels = np.zeros((8, SIDE, SIDE, 3), np.uint8)
    found = clip.embed(pixels, clip.tokenizer.encode(SCRAPED))["clip_text"]
    np.testing.assert_allclose(found, theirs["clip_text"][3:], rtol=0, atol=1e-4)


def test_captions_are_repaired_for_open_clip_alone(folder, tmp_path):
    """There and in the tokenizer of what is exported from there, not elsewhere."""
    part = public_clip.read_public_clip(folder)
    public_clip.write_public_clip(tmp_path / "theirs", part, folder, "open_clip")
    copy_tokenizer(tmp_path / "theirs", tmp_path / "copied")
    Tokenizer.load(tmp_path / "theirs").save(tmp_path / "saved")
    names = {file.name for file in (tmp_path / "copied").iterdir()}
    assert names <= set(FILES), "only the tokenizer is copied"
    plain = Tokenizer.load(folder)
    for name in ("theirs", "copied", "saved"):
        tokenizer = Tokenizer.load(tmp_path / name)
        assert tokenizer.fix_text and tokenizer.fingerprint != plain.fingerprint
        repaired = tokenizer.encode(SCRAPED)
        np.testing.assert_array_equal(
            repaired, plain.encode([repair(caption) for caption in SCRAPED])
        )
        assert (repaired != plain.encode(SCRAPED)).any(1).sum() >= 6
        theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / name)
        ids = theirs(CAPTIONS, truncation=True)["input_ids"]
        for row, own in zip(ids, plain.encode(CAPTIONS), strict=True):
            assert row == own[: len(row)].tolist()
    assert not plain.fix_text
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    text = json.dumps({**config, "fix_text": "yes"})
    (tmp_path / "saved" / "tokenizer_config.json").write_text(text)
    with pytest.raises(ValueError, match="fix_text is 'yes', expected true or false"):
        Tokenizer.load(tmp_path / "saved")


def test_save_diffusers_of_a_public_clip(folder, expected, tmp_path):
    """Each of its folders through transformers' front door; whole, or nothing."""
    model = UnCLIP.load(folder, batch_size=4)
    with pytest.raises(ValueError, match="float8"):
        model.save_diffusers(tmp_path / "failed", dtype="float8")
    assert not [*tmp_path.iterdir()]
    model.save_diffusers(tmp_path / "out")
    own = tmp_path / "out" / "tokenizer" / "notes.txt"
    own.write_text("mine")
    model.save_diffusers(tmp_path / "out")  # again: replaced, and nothing is deleted
    assert own.read_text() == "mine"
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    kinds = {"tokenizer", "text_encoder", "image_encoder", "feature_extractor"}
    assert {k for k in index if not k.startswith("_")} == kinds
    assert {file.name for file in tmp_path.iterdir()} == {"out"}
    images, *wanted = expected
    theirs = [
        getattr(transformers, index[name][1]).from_pretrained(tmp_path / "out" / name)
        for name in ("text_encoder", "image_encoder", "tokenizer")
    ]
    text_encoder, image_encoder, tokenizer = theirs
    processor = transformers.CLIPImageProcessorPil.from_pretrained(
        tmp_path / "out" / "feature_extractor"
    )
    tokens = tokenizer(CAPTIONS, padding="max_length", truncation=True)["input_ids"]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = (
            image_encoder(pixels).image_embeds,
            text_encoder(torch.tensor(tokens)).text_embeds,
        )
    for ours, expected_embedding in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, expected_embedding, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["open_clip", "transformers", "both"])
def test_a_folder_of_both_formats_is_read_by_the_weights_it_has(
    folder, tmp_path, weights
):
    """As LAION and Apple publish: both configs, and the weights of one or both."""
    whole = public_clip.read_public_clip(folder)
    shutil.copytree(folder, tmp_path / "both")
    public_clip.write_public_clip(tmp_path / "both", whole, None, "open_clip")
    names = {"open_clip": "model.safetensors", "transformers": "open_clip_model.saf*"}
    if weights in names:
        for file in (tmp_path / "both").glob(names[weights]):
            file.unlink()
    part = public_clip.read_public_clip(tmp_path / "both")
    assert part.clip_fingerprint == whole.clip_fingerprint


@pytest.mark.parametrize(
    "part,key,value",
    [
        ("vision_cfg", "image_size", 24),
        ("vision_cfg", "layers", 3),
        ("text_cfg", "context_length", 16),
        ("text_cfg", "width", 64),
    ],
)
def test_sizes_of_the_config_must_be_those_of_the_weights(
    folder, tmp_path, part, key, value
):
    open_clip.save_open_clip(tmp_path, *transformers_clip.load_clip_model(folder))
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"][part][key] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{key} is {value}, but the weights are"):
        open_clip.load_open_clip(tmp_path)


def test_zero_shot_is_theirs(folder, expected):
    images, *_ = expected
    model = transformers.CLIPModel.from_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    labels = ["heart", "green tree"]
    tokens = tokenizer(
        [f"a {label}" for label in labels], padding="max_length", return_tensors="pt"
    )
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(tokens["input_ids"], pixels).logits_per_image
    ours = UnCLIP.load(folder, batch_size=4).zero_shot(
        np.stack([fit(image, SIDE) for image in images]), labels, ["a {}"]
    )
    np.testing.assert_allclose(ours, logits.softmax(-1).numpy(), rtol=0, atol=1e-4)
    assert np.ptp(ours[:, 0]) > 0.01


@pytest.mark.slow
def test_the_clip_of_a_diffusers_folder(reference):
    """Its records are those of the CLIP that UnCLIP.load reads from it."""
    clip = FrozenCLIP.load(reference.folder, load_run=None, batch_size=2)
    part = load_stack(reference.folder, ["clip"]).part("clip")
    assert part.clip_fingerprint == clip.fingerprint
    tokens = clip.tokenizer.encode(["a red heart"])
    pixels = np.zeros((1, IMAGE, IMAGE, 3), np.uint8)
    text = clip.embed(pixels, tokens)["clip_text"][0]
    with torch.no_grad():
        ids = torch.tensor(tokens).long()
        theirs = reference.pipeline.text_encoder(ids).text_embeds[0]
    np.testing.assert_allclose(np.asarray(text), theirs.numpy(), rtol=0, atol=1e-4)


def check_processor(folder):
    """CLIPModel of what CLIPProcessor makes, both from the folder alone."""
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessorPil.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    image = np.random.default_rng(1).integers(0, 256, (30, 21, 3), dtype=np.uint8)
    inputs = processor(
        text=CAPTIONS[:1], images=image, padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        theirs = transformers.CLIPModel.from_pretrained(folder)(**inputs)
    clip = UnCLIP.load(folder, batch_size=1)
    embeddings = (
        clip.encode_image(fit(image, SIDE)[None]),
        clip.encode_text(CAPTIONS[:1]),
    )
    for ours, expected in zip(
        embeddings, (theirs.image_embeds, theirs.text_embeds), strict=True
    ):
        ours = ours / np.linalg.norm(ours, axis=-1, keepdims=True)  # as theirs are
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", public_clip.FORMATS)
def test_a_trained_clip_goes_out(folder, tmp_path, format):
    fields, params = transformers_clip.load_clip_model(folder)
    shutil.copytree(folder.parent / "trained", tmp_path / "run" / "tokenizer")
    fields |= {"scan_layers": True, "remat": "full"}  # as it was trained
    meta = {"export": {"part": "clip", "config": {"model": fields}}}
    meta |= {"step": 1, "config": {}, "data_info": {}}
    stacked = mapping.stack_blocks(params)
    arguments = stacked, meta, tmp_path / "run", tmp_path / "out", format
    assert f"for {format}" in export(*arguments)
    assert "none differs" in compare(*arguments)
    read = public_clip.read_public_clip(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, dict(read.params), params)
    if format == "transformers":
        check_processor(tmp_path / "out")
    with pytest.raises(ValueError, match="for a CLIP, and this is a prior"):
        prior = dataclasses.replace(read, kind="prior")
        public_clip.write_public_clip(tmp_path / "out", prior, None, format)
