"""What parity tests share: the smallest whole unCLIP of diffusers and transformers,
and weights for the FID programs; all random."""

import dataclasses
import pathlib
from typing import Any

import pytest

EMBED_DIM, TEXT_WIDTH, LENGTH = 24, 24, 20  # Karlo's text width is its embed_dim too
IMAGE, LARGE = 16, 32
CAPTIONS = ("a red heart on a white background", "a blue cat", "two green trees, old")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A pipeline in memory and the folder that its save_pretrained wrote."""

    pipeline: Any
    image_encoder: Any
    folder: pathlib.Path


def randomise(module, seed: int, gain: float = 1.0):
    """Gives every parameter a random value, zero-initialised ones included."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise * gain / p[0].numel() ** 0.5)
            elif name.endswith("weight"):
                p.copy_(1 + 0.1 * noise)
            else:
                p.copy_(0.1 * noise)
    return module.eval()


def make_pipeline(tokenizer_folder):
    """The components of diffusers.UnCLIPPipeline, tiny."""
    import diffusers
    import transformers
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        tokenizer_folder, model_max_length=LENGTH
    )
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=EMBED_DIM,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    cross, channels = 24, (32, 64)
    unet = {
        "sample_size": IMAGE,
        "block_out_channels": channels,
        "layers_per_block": 1,
        "resnet_time_scale_shift": "scale_shift",
    }
    decoder = diffusers.UNet2DConditionModel(
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=cross,
        attention_head_dim=8,
        class_embed_type="identity",
        **unet,
    )

    def super_resolution():
        return diffusers.UNet2DModel(
            in_channels=6,
            out_channels=3,
            down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
            add_attention=False,
            **{**unet, "sample_size": LARGE, "resnet_time_scale_shift": "default"},
        )

    def scheduler(**kwargs):
        return diffusers.UnCLIPScheduler(num_train_timesteps=1000, **kwargs)

    modules = {
        "prior": diffusers.PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            embedding_dim=EMBED_DIM,
            num_embeddings=LENGTH,
            additional_embeddings=4,
        ),
        "decoder": decoder,
        "text_encoder": transformers.CLIPTextModelWithProjection(text),
        "text_proj": UnCLIPTextProjModel(
            clip_embeddings_dim=EMBED_DIM,
            time_embed_dim=4 * channels[0],
            cross_attention_dim=cross,
        ),
        "super_res_first": super_resolution(),
        "super_res_last": super_resolution(),
    }
    for i, module in enumerate(modules.values()):
        randomise(module, i)
    modules["prior"].clip_mean.data.normal_(std=0.3)
    modules["prior"].clip_std.data.uniform_(0.5, 1.5)
    return diffusers.UnCLIPPipeline(
        **modules,
        tokenizer=tokenizer,
        prior_scheduler=scheduler(
            variance_type="fixed_small_log",
            clip_sample_range=5.0,
            prediction_type="sample",
        ),
        decoder_scheduler=scheduler(variance_type="learned_range"),
        super_res_scheduler=scheduler(variance_type="fixed_small_log"),
    )


def make_image_encoder():
    """transformers' image tower in the same embedding space."""
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=EMBED_DIM,
    )
    return randomise(transformers.CLIPVisionModelWithProjection(config), 9)


@pytest.fixture(scope="session")
def randomised():
    """`randomise`, for tests that make a module of their own."""
    return randomise


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Reference:
    """The tiny pipeline, saved by the libraries' own save_pretrained."""
    from unclip_jax.data.tokenizer import train_tokenizer

    root = tmp_path_factory.mktemp("diffusers")
    train_tokenizer(CAPTIONS * 5, root / "trained", vocab_size=560)
    pipeline = make_pipeline(root / "trained")
    image_encoder = make_image_encoder()
    folder = root / "unclip"
    pipeline.save_pretrained(folder)
    image_encoder.save_pretrained(folder / "image_encoder")
    return Reference(pipeline, image_encoder, folder)


@pytest.fixture(scope="session")
def fid_folder(tmp_path_factory):
    """A folder with weights.pth and weights.npz, see fid_programs.weights."""
    from tests.parity import fid_programs

    if not fid_programs.available():
        pytest.skip(f"the FID programs are not in {fid_programs.PROGRAMS}: make test")
    folder = tmp_path_factory.mktemp("fid")
    fid_programs.reference("weights", folder)
    return folder
