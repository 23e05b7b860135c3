"""Stable unCLIP's pipeline of diffusers with random weights, tiny."""

import pathlib
from collections.abc import Callable

import numpy as np

from tests.parity.unclip_pipeline import Sizes, make_pipeline, randomise

SIZES = Sizes()
LATENT, FACTOR, TEXT = 8, 2, 32  # sides; width of the text encoder
IMAGE = LATENT * FACTOR


def make_unet(**changes):
    """Stable Diffusion 2.1's UNet as unCLIP has it, smaller."""
    import diffusers

    config = {
        "sample_size": LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
        "attention_head_dim": (2, 4, 8),
        "cross_attention_dim": TEXT,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 2 * SIZES.embed_dim,
        "use_linear_projection": True,
        **changes,
    }
    return randomise(diffusers.UNet2DConditionModel(**config), 21)


def make_stable(tokenizer: pathlib.Path):
    """StableUnCLIPImg2ImgPipeline; captions are filled up with "!"."""
    import diffusers
    import torch
    import transformers
    from diffusers.pipelines.stable_diffusion import stable_unclip_image_normalizer

    karlo = make_pipeline(tokenizer, SIZES)
    tokenizer = karlo.tokenizer
    tokenizer.pad_token = "!"
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig.from_dict(
            {
                **karlo.text_encoder.config.to_dict(),
                "hidden_act": "gelu",
                "hidden_size": TEXT,
                "pad_token_id": tokenizer.pad_token_id,
            }
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
            hidden_act="quick_gelu",  # as the small one's, unlike its text encoder's
        )
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        sample_size=IMAGE,
    )
    normalizer = stable_unclip_image_normalizer.StableUnCLIPImageNormalizer(
        SIZES.embed_dim
    )
    generator = torch.Generator().manual_seed(0)  # without it each run has its own
    normalizer.mean.data.normal_(std=0.3, generator=generator)
    normalizer.std.data.uniform_(0.5, 1.5, generator=generator)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        image_encoder=randomise(image, 22),
        image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2"
        ),
        tokenizer=tokenizer,
        text_encoder=randomise(text, 23),
        unet=make_unet(),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            prediction_type="v_prediction",
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        vae=randomise(vae, 24),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_stable_text(tokenizer: pathlib.Path):
    """StableUnCLIPPipeline: the same decoder behind a prior as Karlo's."""
    import diffusers

    stable, karlo = make_stable(tokenizer), make_pipeline(tokenizer, SIZES)
    shared = dict(stable.components)
    for name in ("feature_extractor", "image_encoder"):
        del shared[name]
    pipeline = diffusers.StableUnCLIPPipeline(
        prior_tokenizer=karlo.tokenizer,
        prior_text_encoder=karlo.text_encoder,
        prior=karlo.prior,
        prior_scheduler=karlo.prior_scheduler,
        **shared,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(make: Callable, root: pathlib.Path):
    """(the pipeline that `make` makes, the folder that its save_pretrained wrote)."""
    from tests.parity.conftest import CAPTIONS
    from unclip_jax.tokenizer import train_tokenizer

    train_tokenizer(CAPTIONS * 5, root / "trained", vocab_size=560)
    pipeline, folder = make(root / "trained"), root / "pipeline"
    pipeline.save_pretrained(folder)
    return pipeline, folder


def assert_same_weights(pipeline, theirs):
    """That every tensor of every component of `theirs` is one of `pipeline`, alike."""
    for name, module in theirs.components.items():
        if hasattr(module, "state_dict"):
            state = pipeline.components[name].state_dict()
            assert state.keys() == module.state_dict().keys()
            for key, value in module.state_dict().items():
                np.testing.assert_array_equal(state[key].numpy(), value.numpy(), key)


def export_and_compare(model, kind: str, tokenizer: pathlib.Path, folder: pathlib.Path):
    """Exports a part of `model` as a run's, and reads it back."""
    from unclip_jax.interop.export import compare, export

    part = model.stack.part(kind)
    meta = {
        "step": 7,
        "config": {},
        "export": {"part": kind, "config": part.config},
        "data_info": {
            "clip_fingerprint": model.stack.part("clip").clip_fingerprint,
            "tokenizer_folder": str(tokenizer),
        },
    }
    arguments = part.params, meta, folder / "run", folder / "out", "stable_unclip"
    assert "for stable_unclip" in export(*arguments)
    assert "none differs" in compare(*arguments)
