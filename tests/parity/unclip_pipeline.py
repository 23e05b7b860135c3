"""diffusers' UnCLIPPipeline with random weights, of any size."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Karlo's shape, smaller; the text tower is as wide as its embeddings, as there."""

    embed_dim: int = 24
    length: int = 20  # of captions, in tokens
    depth: int = 2  # of the text tower and of the prior
    heads: int = 2
    image: int = 16
    large: int = 32  # after super-resolution
    channels: tuple[int, ...] = (32, 64)
    large_channels: tuple[int, ...] = (32, 64)
    res_blocks: int = 1
    head_channels: int = 8
    cross: int = 24  # width of the decoder's context


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


def make_pipeline(tokenizer_folder, sizes: Sizes):
    """The pipeline, each of its components with random weights."""
    import diffusers
    import torch
    import transformers
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        tokenizer_folder, model_max_length=sizes.length
    )
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.embed_dim,
        intermediate_size=2 * sizes.embed_dim,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.length,
        projection_dim=sizes.embed_dim,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    deeper = len(sizes.channels) - 1  # levels with attention
    decoder = diffusers.UNet2DConditionModel(
        sample_size=sizes.image,
        in_channels=3,
        out_channels=6,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.res_blocks,
        resnet_time_scale_shift="scale_shift",
        down_block_types=(
            "ResnetDownsampleBlock2D",
            *("SimpleCrossAttnDownBlock2D",) * deeper,
        ),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(
            *("SimpleCrossAttnUpBlock2D",) * deeper,
            "ResnetUpsampleBlock2D",
        ),
        cross_attention_dim=sizes.cross,
        attention_head_dim=sizes.head_channels,
        class_embed_type="identity",
    )

    def super_resolution():
        levels = len(sizes.large_channels)
        return diffusers.UNet2DModel(
            sample_size=sizes.large,
            in_channels=6,
            out_channels=3,
            block_out_channels=sizes.large_channels,
            layers_per_block=sizes.res_blocks,
            down_block_types=("ResnetDownsampleBlock2D",) * levels,
            up_block_types=("ResnetUpsampleBlock2D",) * levels,
            add_attention=False,
        )

    def scheduler(**kwargs):
        return diffusers.UnCLIPScheduler(num_train_timesteps=1000, **kwargs)

    modules = {
        "prior": diffusers.PriorTransformer(
            num_attention_heads=sizes.heads,
            attention_head_dim=sizes.embed_dim // sizes.heads,
            num_layers=sizes.depth,
            embedding_dim=sizes.embed_dim,
            num_embeddings=sizes.length,
            additional_embeddings=4,
        ),
        "decoder": decoder,
        "text_encoder": transformers.CLIPTextModelWithProjection(text),
        "text_proj": UnCLIPTextProjModel(
            clip_embeddings_dim=sizes.embed_dim,
            time_embed_dim=4 * sizes.channels[0],
            cross_attention_dim=sizes.cross,
        ),
        "super_res_first": super_resolution(),
        "super_res_last": super_resolution(),
    }
    for i, module in enumerate(modules.values()):
        randomise(module, i)
    generator = torch.Generator().manual_seed(0)  # without it each run has its own
    modules["prior"].clip_mean.data.normal_(std=0.3, generator=generator)
    modules["prior"].clip_std.data.uniform_(0.5, 1.5, generator=generator)
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
