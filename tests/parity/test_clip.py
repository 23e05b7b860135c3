"""CLIP against transformers' own, weights in and out. float32, differences <= 1e-4."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.torch_shapes import torch_shapes
from unclip_jax import models
from unclip_jax.interop import components, mapping, native, transformers_clip

from .conftest import randomise

TOLERANCE = 1e-4
LENGTH, VOCAB, IMAGE = 12, 60, 16
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "projection_dim": 24,
    "bos_token_id": VOCAB - 2,
    "eos_token_id": VOCAB - 1,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 100,  # no whole multiple of the width
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": IMAGE,
    "patch_size": 8,
    "projection_dim": 24,
}


def inputs():
    """Images, and captions padded with 0 as Karlo does, and with the end token."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, IMAGE, IMAGE, 3), dtype=np.uint8)
    tokens = rng.integers(1, VOCAB - 2, (4, LENGTH)).astype(np.int32)
    tokens[:, 0] = VOCAB - 2
    for row, end in enumerate((3, 7, LENGTH - 1, 1)):
        tokens[row, end] = VOCAB - 1
        tokens[row, end + 1 :] = (0, VOCAB - 1)[row % 2]
    return images, tokens


def normalised(images, fields):
    """(B, 3, S, S) float32, what CLIPImageProcessor makes of the pixels."""
    x = images.astype(np.float32) / 255
    x = (x - np.float32(fields["image_mean"])) / np.float32(fields["image_std"])
    return x.transpose(0, 3, 1, 2)


def make_theirs(act, eos=VOCAB - 1):
    import transformers

    config = transformers.CLIPConfig(
        text_config={**TEXT, "hidden_act": act, "eos_token_id": eos},
        vision_config={**VISION, "hidden_act": act},
        projection_dim=24,
    )
    return randomise(transformers.CLIPModel(config), 3)


def outputs_of_theirs(model, images, tokens, fields):
    import torch

    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens).long(),
            pixel_values=torch.tensor(normalised(images, fields)),
        )
        text = model.text_model(torch.tensor(tokens).long())
        image = model.vision_model(torch.tensor(normalised(images, fields)))
        projected = (
            model.visual_projection(image.pooler_output),
            model.text_projection(text.pooler_output),
        )
    return {
        "image": projected[0].numpy(),
        "text": projected[1].numpy(),
        "states": text.last_hidden_state.numpy(),
        "logits": out.logits_per_image.numpy(),
    }


def outputs_of_ours(fields, params, images, tokens):
    model = models.build("clip", fields)

    @jax.jit
    def run(params, images, tokens):
        variables = {"params": params}
        image, text = model.apply(variables, images, tokens)
        unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]
        return {
            "image": image,
            "text": text,
            "states": model.apply(variables, tokens, method="text_states"),
            "logits": jnp.exp(params["logit_scale"]) * unit[0] @ unit[1].T,
        }

    return jax.device_get(run(params, images, tokens))


def assert_same(ours, theirs):
    for name, value in theirs.items():
        assert np.abs(value).max() > 0.1, name  # or the comparison says nothing
        np.testing.assert_allclose(
            ours[name], value, rtol=0, atol=TOLERANCE, err_msg=name
        )


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def saved(request, tmp_path_factory):
    """(their CLIPModel, its folder, our fields, our params)."""
    theirs = make_theirs(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1  # sharded
    return theirs, folder, *transformers_clip.load_clip_model(folder)


@pytest.mark.slow
def test_equals_transformers(saved):
    theirs, _, fields, params = saved
    assert fields["eot_id"] == VOCAB - 1
    images, tokens = inputs()
    expected = outputs_of_theirs(theirs, images, tokens, fields)
    assert_same(outputs_of_ours(fields, params, images, tokens), expected)


def test_transformers_loads_what_we_save(saved, tmp_path):
    import torch
    import transformers

    theirs, _, fields, params = saved
    stacked = mapping.stack_blocks(params)  # as a model with scan_layers has them
    transformers_clip.save_clip_model(tmp_path, fields, stacked, shard_bytes=60_000)
    loaded, info = transformers.CLIPModel.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    state = loaded.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(state[name], value), name
    for part in ("text_config", "vision_config"):
        ours, own = getattr(loaded.config, part), getattr(theirs.config, part)
        known = {**TEXT, **VISION, "hidden_act": 0}
        for key in known.keys() & own.to_dict().keys() - {"pad_token_id"}:
            assert getattr(ours, key) == getattr(own, key), key
    assert transformers_clip.load_clip_model(tmp_path)[0] == fields


def test_the_legacy_end_token(tmp_path):
    """eos_token_id 2 means the highest number, in transformers and here."""
    theirs = make_theirs("gelu", eos=2)
    theirs.save_pretrained(tmp_path)
    fields, params = transformers_clip.load_clip_model(tmp_path)
    assert fields["eot_id"] == VOCAB - 1
    images, tokens = inputs()
    expected = outputs_of_theirs(theirs, images, tokens, fields)
    assert_same(outputs_of_ours(fields, params, images, tokens), expected)


def test_two_towers_are_one_clip(reference, tmp_path):
    """The text encoder and the image encoder of a diffusers unCLIP, and back."""
    import torch
    import transformers

    text, image = reference.pipeline.text_encoder, reference.image_encoder
    fields, params = transformers_clip.load_clip_towers(
        reference.folder / "text_encoder", reference.folder / "image_encoder"
    )
    np.testing.assert_allclose(np.exp(params["logit_scale"]), 100, rtol=1e-5)
    rng = np.random.default_rng(1)
    side, length = fields["image_size"], fields["context_length"]
    images = rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    tokens = rng.integers(3, fields["vocab_size"] - 2, (2, length)).astype(np.int32)
    tokens[:, 9:] = fields["eot_id"]
    ours = outputs_of_ours(fields, params, images, tokens)
    with torch.no_grad():
        text_out = text(torch.tensor(tokens).long())
        image_out = image(torch.tensor(normalised(images, fields)))
    expected = {
        "image": image_out.image_embeds.numpy(),
        "text": text_out.text_embeds.numpy(),
        "states": text_out.last_hidden_state.numpy(),
    }
    assert_same(ours, expected)
    transformers_clip.save_clip_towers(
        tmp_path / "text_encoder",
        tmp_path / "image_encoder",
        fields,
        params,
        feature_extractor=tmp_path / "feature_extractor",
    )
    for own, name in ((text, "text_encoder"), (image, "image_encoder")):
        loaded, info = type(own).from_pretrained(
            tmp_path / name, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        for key, value in own.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
    processor = transformers.CLIPImageProcessorPil.from_pretrained(
        tmp_path / "feature_extractor"
    )
    assert processor.crop_size == {"height": side, "width": side}


def test_defaults_are_transformers_own():
    import transformers

    for defaults, config in (
        (transformers_clip.TEXT_DEFAULTS, transformers.CLIPTextConfig()),
        (transformers_clip.VISION_DEFAULTS, transformers.CLIPVisionConfig()),
    ):
        for name, value in defaults.items():
            assert getattr(config, name) == value, name


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(model_type="siglip"), "'siglip', expected 'clip'"),
        (lambda c: c["text_config"].update(hidden_act="gelu"), "share one hidden_act"),
        (lambda c: c["vision_config"].update(layer_norm_eps=1e-6), "vision layer_norm"),
        (lambda c: c["text_config"].update(num_hidden_layers=3), "16 missing: text_mo"),
        (lambda c: c["text_config"].update(num_hidden_layers=1), "16 unexpected: text"),
    ],
)
def test_what_ours_cannot_be(saved, tmp_path, change, message):
    _, _, fields, params = saved
    fields = {**fields, "activation": "quick_gelu"}
    transformers_clip.save_clip_model(tmp_path, fields, params)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        transformers_clip.load_clip_model(tmp_path)


def test_the_fingerprint_survives_the_trip(saved, tmp_path):
    _, _, fields, params = saved
    before = native.clip_fingerprint({"model": fields}, params)
    transformers_clip.save_clip_model(tmp_path, fields, params)
    again = transformers_clip.load_clip_model(tmp_path)
    assert native.clip_fingerprint({"model": again[0]}, again[1]) == before


# (embed_dim, image, patch, vision: width, depth, heads, MLP, text: width, depth, heads)
PUBLIC = {
    "ViT-B/32": (512, 224, 32, 768, 12, 12, 3072, 512, 12, 8),
    "ViT-L/14": (768, 224, 14, 1024, 24, 16, 4096, 768, 12, 12),
    "ViT-L/14-336": (768, 336, 14, 1024, 24, 16, 4096, 768, 12, 12),
    "ViT-H/14": (1024, 224, 14, 1280, 32, 16, 5120, 1024, 24, 16),
    "ViT-bigG/14": (1280, 224, 14, 1664, 48, 16, 8192, 1280, 32, 20),
    "the paper's H/16": (1024, 256, 16, 1280, 32, 16, 5120, 1024, 24, 16),
}
KNOWN_COUNTS = {"ViT-B/32": 151_277_313, "ViT-L/14": 427_616_513}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_public_sizes_have_every_tensor(name):
    """Names and shapes at full size, on both sides without memory."""
    import torch
    import transformers

    dim, side, patch, vw, vd, vh, mlp, tw, td, th = PUBLIC[name]
    text = {
        "hidden_size": tw,
        "intermediate_size": 4 * tw,
        "num_hidden_layers": td,
        "num_attention_heads": th,
        "projection_dim": dim,
    }
    vision = {
        "hidden_size": vw,
        "intermediate_size": mlp,
        "num_hidden_layers": vd,
        "num_attention_heads": vh,
        "image_size": side,
        "patch_size": patch,
        "projection_dim": dim,
    }
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=dim
    )
    with torch.device("meta"):
        theirs = transformers.CLIPModel(config).state_dict()
    fields = transformers_clip.fields_of(config.to_dict(), {}, name)
    shapes = components.param_shapes("clip", models.build("clip", fields))
    ours = torch_shapes(transformers_clip.table(fields), shapes)
    assert ours == {k: tuple(v.shape) for k, v in theirs.items()}
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == sum(v.numel() for v in theirs.values())
    assert count == KNOWN_COUNTS.get(name, count)
