"""Published decoders are trained from their folders, and go back to from_pretrained.

At a rate of 0, so that what comes out is what went in.
"""

import re

import numpy as np
import pytest

from tests import latent_configs
from tests.embedding.test_runner import Pictures
from tests.latent_configs import resized
from tests.parity import kandinsky_pipeline, stable_pipeline
from unclip_jax import models
from unclip_jax.data.loader import open_data
from unclip_jax.embedding import runner
from unclip_jax.embedding.frozen_clip import FrozenCLIP
from unclip_jax.embedding.hints import HintFiles
from unclip_jax.embedding.latents import LatentEncoder
from unclip_jax.images import save_image
from unclip_jax.interop import components, kandinsky, stable_unclip
from unclip_jax.interop.export import compare, export, merged
from unclip_jax.interop.frozen_autoencoder import FrozenAutoencoder
from unclip_jax.interop.init_from import load_initial
from unclip_jax.training.checkpoint import load_run
from unclip_jax.training.checksums import tree_checksum
from unclip_jax.training.loop import train
from unclip_jax.training.run_config import read_config

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("single_device")

TRAINING = {
    "stage": "decoder",
    "data": {},
    "steps": 1,
    "batch_size": 8,
    "optimizer": {"learning_rate": 0.0},
}
# of the sizes of the pipelines
KANDINSKY = resized(
    latent_configs.KANDINSKY,
    num_clip_tokens=32,
    channels=32,
    channel_mult=(1, 2),
    head_channels=8,
    norm_groups=32,
    text_width=16,
)
STABLE = resized(
    latent_configs.STABLE,
    channels=32,
    channel_mult=(1, 2, 2),
    num_heads=(2, 4, 0),
    mid_heads=8,
    num_res_blocks=2,
    norm_groups=32,
)


def run(config, records, folder, workdir):
    autoencoder = FrozenAutoencoder.load(folder, load_run)
    data = open_data({"source": "records", "path": records, "feed": "arrays"})
    train(
        read_config(
            {**TRAINING, **config, "init_from": str(folder), "autoencoder": str(folder)}
        ),
        workdir,
        data=data,
        load_initial=load_initial,
        load_autoencoder=lambda *_: autoencoder,
    )
    return load_run(str(workdir))


def assert_same_weights(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def records(kandinsky, tmp_path_factory):
    """With its latents, made beforehand."""
    prior, decoder = kandinsky.folders
    clip = FrozenCLIP.load(prior, load_run, batch_size=8)
    encoder = LatentEncoder(FrozenAutoencoder.load(decoder, load_run))
    folder = tmp_path_factory.mktemp("latents") / "records"
    source = Pictures(size=kandinsky_pipeline.IMAGE)
    runner.embed_source(source, folder, clip, encoder, shard_size=20)
    return folder


@pytest.mark.slow
def test_kandinsky(kandinsky, records, tmp_path):
    """Its autoencoder comes along in the export."""
    _, decoder = kandinsky.folders
    made = run(KANDINSKY, records, decoder, tmp_path / "run")
    export(*made, tmp_path / "run", tmp_path / "out", "kandinsky")
    pipeline = diffusers.KandinskyV22Pipeline.from_pretrained(
        tmp_path / "out" / "decoder"
    )
    assert_same_weights(pipeline.unet, kandinsky.decoder.unet)
    assert_same_weights(pipeline.movq, kandinsky.decoder.movq)
    assert pipeline.scheduler.config.beta_end == 0.012
    with pytest.raises(ValueError, match="null_embedding='zero_image'"):
        load_initial(
            decoder,
            {**made[1], "config": {"stage_options": {"null_embedding": "learned"}}},
        )


@pytest.mark.slow
def test_kandinsky_inpaint(kandinsky, records, tmp_path):
    """Nine channels in, as -decoder-inpaint is published."""
    theirs = diffusers.KandinskyV22InpaintPipeline(
        unet=kandinsky_pipeline.make_unet(in_channels=9),
        scheduler=kandinsky.decoder.scheduler,
        movq=kandinsky.decoder.movq,
    )
    assert_training_keeps(theirs, "inpaint", records, tmp_path)


@pytest.mark.slow
def test_kandinsky_depth(kandinsky, tmp_path):
    """With a hint per record, as -controlnet-depth is published."""
    depth = {"in_channels": 8, "addition_embed_type": "image_hint"}
    theirs = diffusers.KandinskyV22ControlnetPipeline(
        unet=kandinsky_pipeline.make_unet(**depth),
        scheduler=kandinsky.decoder.scheduler,
        movq=kandinsky_pipeline.make_movq(8),
    )
    source = Pictures(size=8 * kandinsky_pipeline.LATENT)
    (tmp_path / "depth").mkdir()
    for i in range(len(source)):
        image = source[len(source) - 1 - i]["image"]
        save_image(tmp_path / "depth" / f"p{i}.png", image)
    clip = FrozenCLIP.load(kandinsky.folders[0], load_run, batch_size=8)
    hints, records = HintFiles(tmp_path / "depth"), tmp_path / "records"
    runner.embed_source(source, records, clip, hints=hints, shard_size=20)
    assert_training_keeps(theirs, "hint", records, tmp_path)


def assert_training_keeps(theirs, extra, records, tmp_path):
    """At a rate of 0 a decoder's pipeline comes out as it went in."""
    folder, config = tmp_path / "published", resized(KANDINSKY, extra=extra)
    theirs.save_pretrained(folder)
    made = run(config, records, folder, tmp_path / "run")
    export(*made, tmp_path / "run", tmp_path / "out", "kandinsky")
    pipeline = type(theirs).from_pretrained(tmp_path / "out" / "decoder")
    assert_same_weights(pipeline.unet, theirs.unet)


@pytest.mark.slow
def test_adapters(kandinsky, records, tmp_path):
    """They are merged into the attention of what from_pretrained loads."""
    _, decoder = kandinsky.folders
    config = {
        **KANDINSKY,
        "steps": 2,
        "optimizer": {"learning_rate": 0.1},
        "lora": {"rank": 2, "alpha": 3.0},
    }
    params, meta = run(config, records, decoder, tmp_path / "run")
    assert set(params) == {"adapters", "of_data"}
    run(config, records, decoder, tmp_path / "run")  # goes on: finds what it began with
    merged(params, meta, tree_checksum)
    with pytest.raises(ValueError, match="trained on other parameters"):
        merged(params, {**meta, "init_checksum": "another"}, tree_checksum)
    export(params, meta, tmp_path / "run", tmp_path / "out", "kandinsky")
    compare(params, meta, tmp_path / "run", tmp_path / "out", "kandinsky")
    ours = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out/decoder/unet")
    ours, theirs = ours.state_dict(), kandinsky.decoder.unet.state_dict()
    for name, tensor in theirs.items():
        if not re.search(r"\.(add_[kv]_proj|to_[qkv]|to_out\.0)\.weight", name):
            np.testing.assert_allclose(ours[name], tensor, atol=1e-6, err_msg=name)
    name = "mid_block.attentions.0.to_q.weight"
    pair = params["adapters"]["unet"]["mid_attn"]["q"]
    expected = 1.5 * (pair["a"] @ pair["b"]).T
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(ours[name] - theirs[name], expected, atol=1e-6)


@pytest.mark.slow
def test_stable_unclip(stable, tmp_path):
    """Its Gaussians, encoded while it trains; captions filled up with "!"."""
    theirs, folder = stable
    clip = FrozenCLIP.load(folder, load_run, batch_size=8, text_states=True)
    assert (
        clip.pad_id == theirs.tokenizer.pad_token_id and "clip_text" not in clip.arrays
    )
    source = Pictures(size=stable_pipeline.IMAGE)
    runner.embed_source(source, tmp_path / "records", clip, shard_size=20)
    made = run(STABLE, tmp_path / "records", folder, tmp_path / "run")
    out = tmp_path / "out"
    export(*made, tmp_path / "run", out, "stable_unclip")
    unet = diffusers.UNet2DConditionModel.from_pretrained(out / "unet")
    assert_same_weights(unet, theirs.unet)
    assert_same_weights(
        diffusers.AutoencoderKL.from_pretrained(out / "vae"), theirs.vae
    )
    assert made[0]["empty_text_states"].any()


@pytest.mark.parametrize(
    ("library", "codes", "message"),
    [(kandinsky, 0, "is variational"), (stable_unclip, 8, "is vector-quantized")],
)
def test_the_other_kind_of_autoencoder_is_refused(library, codes, message, tmp_path):
    fields = {"channels": 8, "channel_mult": (1,), "norm_groups": 4, "num_codes": codes}
    module = models.build("autoencoder", fields)
    shapes = components.param_shapes("autoencoder", module)
    part = components.build_component(
        "autoencoder", {"model": fields}, shapes, {}, where="tiny"
    )
    with pytest.raises(ValueError, match=message):
        library.write_part(tmp_path, part)
