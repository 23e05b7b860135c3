"""The decoder against diffusers' UnCLIPTextProjModel and UNet2DConditionModel.

Every parameter is random, zero-initialised ones too, so that each one acts. Outputs are
of order 1; the greatest difference measured in float32 on a CPU is 4e-6.
"""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.torch_shapes import torch_shapes
from unclip_jax import models
from unclip_jax.interop import components, diffusers_decoder, weights
from unclip_jax.models.clip_caption import with_empty_caption

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPES = pathlib.Path(__file__).parent / "shapes"
ATOL = 1e-4
TEXT = {"context_length": 20, "eot_id": 30, "vocab_size": 31}
DIM, SIDE = 24, 16
KARLO_TEXT_PROJ = {
    "_class_name": "UnCLIPTextProjModel",
    "clip_embeddings_dim": 768,
    "clip_extra_context_tokens": 4,
    "cross_attention_dim": 1536,
    "time_embed_dim": 1280,
}
KARLO_DECODER = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 64,
    "block_out_channels": [320, 640, 960, 1280],
    "class_embed_type": "identity",
    "cross_attention_dim": 1536,
    "down_block_types": ["ResnetDownsampleBlock2D"]
    + ["SimpleCrossAttnDownBlock2D"] * 3,
    "in_channels": 3,
    "layers_per_block": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 64,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
}


def tensor(a):
    return torch.from_numpy(np.array(a))


def their_outputs(text_proj, unet, inputs, empty, guided):
    """As UnCLIPPipeline calls them; guided: the unconditional half alone."""
    x, t, clip_image, tokens, clip_text, states = inputs
    mask = np.arange(tokens.shape[1]) <= (tokens == TEXT["eot_id"]).argmax(1)[:, None]
    if guided:
        states = np.stack([empty[0]] * len(x))
        clip_text = np.stack([empty[1]] * len(x))
        mask = np.broadcast_to(np.arange(tokens.shape[1]) < 2, mask.shape)
        null = text_proj.learned_classifier_free_guidance_embeddings
        clip_image = null.detach().numpy()[None].repeat(len(x), 0)
    with torch.no_grad():
        context, time = text_proj(
            image_embeddings=tensor(clip_image),
            prompt_embeds=tensor(clip_text),
            text_encoder_hidden_states=tensor(states),
            do_classifier_free_guidance=False,
        )
        mask = torch.nn.functional.pad(
            tensor(mask), (context.shape[1] - 20, 0), value=True
        )
        out = unet(
            tensor(x).permute(0, 3, 1, 2),
            tensor(t),
            encoder_hidden_states=context,
            class_labels=time,
            attention_mask=mask,
        ).sample
    return out.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    tokens = np.full((2, 20), 30, np.int32)
    tokens[:, 0] = 29
    tokens[0, 1:4], tokens[1, 1:9] = 5, 7
    return (
        normal(2, SIDE, SIDE, 3),
        np.array([3, 900]),
        normal(2, DIM),
        tokens,
        normal(2, DIM),
        normal(2, 20, DIM),
    )


@pytest.fixture(scope="module")
def empty():
    rng = np.random.default_rng(1)
    shapes = (20, DIM), (DIM,)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.fixture(scope="module")
def run():
    """(part config, params, inputs, dropped) -> our outputs; compiled once a model."""
    compiled = {}

    def outputs(config, params, inputs, dropped=False):
        part = components.build_component(
            "decoder", config, params, {"clip_fingerprint": "x"}, where="test"
        )
        if part.module not in compiled:
            compiled[part.module] = jax.jit(part.module.apply)
        x, t, clip_image, tokens, clip_text, states = inputs
        drop = jnp.full(len(x), dropped)
        call = compiled[part.module]
        return call(
            {"params": params}, x, t, clip_image, tokens, drop, drop, clip_text, states
        )

    return outputs


@pytest.fixture(scope="module")
def loaded(reference, empty):
    """The reference pipeline's decoder, read by us."""
    folder = reference.folder
    config, params = diffusers_decoder.load_decoder(
        folder / "text_proj", folder / "decoder", folder / "decoder_scheduler", **TEXT
    )
    return config, with_empty_caption(params, *empty)


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [False, True])
def test_theirs_read_by_us(reference, loaded, run, inputs, empty, dropped):
    pipeline = reference.pipeline
    theirs = their_outputs(pipeline.text_proj, pipeline.decoder, inputs, empty, dropped)
    ours = run(*loaded, inputs, dropped)
    assert 0.1 < theirs.std() < 10
    np.testing.assert_allclose(ours, theirs, atol=ATOL)


@pytest.mark.slow
def test_other_depths_levels_and_shifts(randomised, run, inputs, empty, tmp_path):
    """Three levels with two and one blocks, shift only, no learned variance."""
    cross, channels = 16, (16, 32, 48)
    unet = randomised(
        diffusers.UNet2DConditionModel(
            sample_size=SIDE,
            in_channels=3,
            out_channels=3,
            block_out_channels=channels,
            layers_per_block=[2, 1, 1],
            down_block_types=(
                "SimpleCrossAttnDownBlock2D",
                "ResnetDownsampleBlock2D",
                "SimpleCrossAttnDownBlock2D",
            ),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=(
                "SimpleCrossAttnUpBlock2D",
                "ResnetUpsampleBlock2D",
                "SimpleCrossAttnUpBlock2D",
            ),
            cross_attention_dim=cross,
            attention_head_dim=8,
            norm_num_groups=8,
            class_embed_type="identity",
        ),
        3,
    )
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    text_proj = randomised(
        UnCLIPTextProjModel(
            clip_extra_context_tokens=3,
            clip_embeddings_dim=DIM,
            time_embed_dim=4 * channels[0],
            cross_attention_dim=cross,
        ),
        4,
    )
    text_proj.save_pretrained(tmp_path / "text_proj")
    # half the precision, in several files
    unet.half().save_pretrained(tmp_path / "unet", max_shard_size="100KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    config, params = diffusers_decoder.load_decoder(
        tmp_path / "text_proj", tmp_path / "unet", **TEXT
    )
    ours = run(config, with_empty_caption(params, *empty), inputs)
    theirs = their_outputs(text_proj, unet.float(), inputs, empty, False)
    assert ours.shape == (2, SIDE, SIDE, 3)
    np.testing.assert_allclose(ours, theirs, atol=ATOL)


@pytest.mark.slow
def test_ours_read_by_them(reference, loaded, run, inputs, empty, tmp_path):
    """Saved by us, their classes find every key, no other, and give the same."""
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    folders = tmp_path / "text_proj", tmp_path / "decoder"
    diffusers_decoder.save_decoder(*loaded, *folders)
    read = []
    for cls, folder in zip(
        (UnCLIPTextProjModel, diffusers.UNet2DConditionModel), folders, strict=True
    ):
        model, info = cls.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        read.append(model.eval())
    theirs = their_outputs(*read, inputs, empty, False)
    np.testing.assert_allclose(run(*loaded, inputs), theirs, atol=ATOL)
    before, after = (
        json.loads(model.to_json_string())
        for model in (reference.pipeline.decoder, read[1])
    )
    assert not {k for k in before if k[0] != "_" and before[k] != after[k]}


@pytest.mark.parametrize("dropped", [False, True])
def test_standardised_embeddings_are_folded_in(loaded, run, inputs, dropped, tmp_path):
    """A decoder trained here, with the records' statistics, gives the same as raw."""
    config, params = loaded
    rng = np.random.default_rng(2)
    space = {
        "mean": rng.standard_normal(DIM).astype(np.float32),
        "std": rng.uniform(0.5, 1.5, DIM).astype(np.float32),
    }
    params = {**params, "space": space}
    before = run(config, params, inputs, dropped)
    folders = tmp_path / "text_proj", tmp_path / "decoder"
    trained_here = {**config, "embedding": "standardize"}
    diffusers_decoder.save_decoder(trained_here, params, *folders)
    read, raw = diffusers_decoder.load_decoder(*folders, **TEXT)
    empty = {k: v for k, v in params.items() if k.startswith("empty_")}
    after = run(read, {**raw, **empty}, inputs, dropped)
    np.testing.assert_allclose(after, before, atol=ATOL)
    if not dropped:  # the statistics do matter
        unfolded = run(config, {**params, "space": raw["space"]}, inputs)
        assert np.abs(unfolded - before).max() > 0.1


@pytest.mark.slow
def test_karlo_at_full_size_has_every_name_and_shape():
    """885,439,686 + 7,878,400 parameters, without allocating them."""
    fields = diffusers_decoder.model_fields(KARLO_TEXT_PROJ, KARLO_DECODER, "a", "b")
    fields |= {"context_length": 77, "eot_id": 49407, "vocab_size": 49408}
    shapes = components.param_shapes("decoder", models.build("decoder", fields))
    rest = {k: v for k, v in shapes.items() if k != "unet"}
    tables = {
        "karlo_text_proj": (diffusers_decoder.text_proj_table(4), rest),
        "karlo_decoder": (
            diffusers_decoder.diffusers_unet.table(fields),
            {"unet": shapes["unet"]},
        ),
    }
    for name, (table, ours) in tables.items():
        expected = json.loads((SHAPES / f"{name}.json").read_text())
        found = torch_shapes(table, ours)
        assert {k: list(v) for k, v in found.items()} == expected
    known = {"space", "empty_text_states", "empty_clip_text"}
    assert {entry.ours.split("/")[0] for entry in tables["karlo_text_proj"][0]} == (
        rest.keys() - known
    )
    assert len(tables["karlo_decoder"][0]) == len(jax.tree.leaves(shapes["unet"]))


def test_karlos_own_settings_come_out_again():
    fields = diffusers_decoder.model_fields(KARLO_TEXT_PROJ, KARLO_DECODER, "a", "b")
    theirs = diffusers_decoder.diffusers_unet.their_settings(fields, in_channels=3)
    kept = {k: theirs[k] for k in KARLO_DECODER if k in theirs}
    assert kept == {k: KARLO_DECODER[k] for k in kept} and len(kept) > 5
    # and the config that trains one says the same of the model
    path = SHAPES.parents[2] / "configs" / "karlo" / "decoder.py"
    model = runpy.run_path(str(path))["get_config"]().model.to_dict()
    assert model.pop("remat")
    assert model == {k: fields[k] for k in model} and len(model) > 8


def test_what_is_missing_or_unknown_is_named(reference, tmp_path):
    tensors = weights.read_weights(reference.folder / "decoder")
    del tensors["mid_block.attentions.0.add_k_proj.weight"]
    tensors["mid_block.surprise"] = np.zeros(3, np.float32)
    weights.write_weights(tmp_path, tensors, "diffusion_pytorch_model")
    config = (reference.folder / "decoder" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError) as error:
        diffusers_decoder.load_decoder(reference.folder / "text_proj", tmp_path, **TEXT)
    assert "1 missing: mid_block.attentions.0.add_k_proj.weight" in str(error.value)
    assert "1 unexpected: mid_block.surprise" in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_embed_type": None}, "class_embed_type is None; only 'identity'"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06; only 1e-05"),
        ({"resnet_time_scale_shift": "ada_group"}, "'ada_group', expected 'default'"),
        ({"block_out_channels": [32, 48, 64, 64]}, r"\[32, 48, 64, 64\] must be mult"),
        ({"up_block_types": ["ResnetUpsampleBlock2D"] * 4}, "at the same levels"),
        ({"in_channels": 4}, "4 in, 6 out; a decoder takes a picture"),
        ({"cross_attention_dim": 8}, "cross_attention_dim is 1536, but the decoder"),
        ({"attention_head_dim": [8, 8, 8, 8]}, "only one number is supported"),
        ({"sample_size": 60}, "sample_size is 60"),
        ({"smaple_size": 64}, "'smaple_size' in b: did you mean 'sample_size'"),
        ({"_class_name": "UNet2DModel"}, "expected a UNet2DConditionModel, found a"),
    ],
)
def test_settings_without_a_counterpart_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        diffusers_decoder.model_fields(
            KARLO_TEXT_PROJ, {**KARLO_DECODER, **change}, "a", "b"
        )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"caption": "tokens"}, "caption 'clip_states'; this one has 'tokens'"),
        ({"unit_norm": True}, "unit_norm False; this one has True"),
        ({"text_states_width": 7}, "text_states_width 24; this one has 7"),
        ({"patch_size": 2}, "patch_size 2: keep it in the native format"),
        ({"channel_mult": (2, 2)}, r"have channel_mult\[0\] 1; this one .* 2"),
        ({"attention_resolutions": ()}, "this decoder has none"),
    ],
)
def test_decoders_they_cannot_hold_are_refused(loaded, change, message, tmp_path):
    config, params = loaded
    config = {**config, "model": {**config["model"], **change}}
    with pytest.raises(ValueError, match=message):
        diffusers_decoder.save_decoder(config, params, tmp_path / "a", tmp_path / "b")
    assert not list(tmp_path.iterdir())
