"""Kandinsky 2.2's two pipelines of diffusers with random weights, tiny."""

import dataclasses
import pathlib
from typing import Any

from tests.parity.unclip_pipeline import Sizes, make_pipeline, randomise

SIZES = Sizes()
LATENT, FACTOR = 8, 2  # sides: of the latents, of a picture over its latents
IMAGE = LATENT * FACTOR
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


@dataclasses.dataclass(frozen=True)
class Kandinsky:
    """Pipelines in memory, and the folders that their save_pretrained wrote."""

    prior: Any
    decoder: Any
    folders: list[pathlib.Path]


def make_kandinsky(
    root: pathlib.Path, tokenizer: pathlib.Path, **scheduler
) -> Kandinsky:
    """The prior's pipeline and the decoder's, saved under `root`."""
    import diffusers

    prior = make_prior_pipeline(tokenizer)
    decoder = diffusers.KandinskyV22Pipeline(
        unet=make_unet(),
        scheduler=diffusers.DDPMScheduler(**SCHEDULER),
        movq=make_movq(),
    )
    folders = [root / "prior_folder", root / "decoder_folder"]
    for pipeline, folder in zip((prior, decoder), folders, strict=True):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(folder)
    return Kandinsky(prior, decoder, folders)


def make_prior_pipeline(tokenizer: pathlib.Path):
    """KandinskyV22PriorPipeline; its CLIP's towers have exact GELUs, as bigG."""
    import diffusers
    import transformers

    karlo = make_pipeline(tokenizer, SIZES)
    text = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig.from_dict(
            {**karlo.text_encoder.config.to_dict(), "hidden_act": "gelu"}
        )
    )
    image = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=SIZES.embed_dim,
            hidden_act="gelu",
        )
    )
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return diffusers.KandinskyV22PriorPipeline(
        prior=karlo.prior,
        image_encoder=randomise(image, 11),
        text_encoder=randomise(text, 12),
        tokenizer=karlo.tokenizer,
        scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log",
            clip_sample_range=10.0,
            prediction_type="sample",
            num_train_timesteps=1000,
        ),
        image_processor=processor,
    )


def make_unet(**changes):
    """Kandinsky 2.2's decoder, smaller."""
    import diffusers

    config = {
        "sample_size": LATENT,
        "in_channels": 4,
        "out_channels": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "resnet_time_scale_shift": "scale_shift",
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "encoder_hid_dim": SIZES.embed_dim,
        "encoder_hid_dim_type": "image_proj",
        "addition_embed_type": "image",
        **changes,
    }
    unet = randomise(diffusers.UNet2DConditionModel(**config), 13)
    # x_0 has no bound, and is 15 times the noise that is predicted first
    unet.conv_out.weight.data *= 0.2
    return unet


def make_movq(factor: int = FACTOR):
    """Kandinsky's autoencoder, smaller; `factor` is 2 to the number of levels but 1."""
    import diffusers

    more = factor.bit_length() - 2
    movq = diffusers.VQModel(
        block_out_channels=(32,) * more + (32, 64),
        down_block_types=("DownEncoderBlock2D",) * more
        + ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D")
        + ("UpDecoderBlock2D",) * more,
        latent_channels=4,
        layers_per_block=1,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
        sample_size=IMAGE,
    )
    randomise(movq, 14)
    # latents are large (see make_unet): or most pixels would be black or white
    for name, p in movq.decoder.named_parameters():
        if name.endswith(("conv_y.weight", "conv_b.weight", "conv_out.weight")):
            p.data *= 0.3
    return movq
