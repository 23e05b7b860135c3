"""The training step of diffusers' prior or decoder, as large as a config's of ours.

Of a prior of token grids it is that of dalle2-pytorch's layers, see dalle2_step.

AdamW in its fused form, an exponential moving average by torch's own loop over all
parameters, no clipping and no rule for steps that are not finite: the least that such
a script does. Batches and noise are random.
"""

import os
from typing import Any

from benchmarks import dalle2_step
from unclip_jax.errors import UsageError
from unclip_jax.training.run_config import read_config


def make(config, assume, channels_last: bool):
    """Returns (step, {"parameters"}), for `turns.in_turns`.

    Args:
      config: of a prior or a UNet decoder whose caption is "clip_states", or of an
        embedding prior (see dalle2_step).
      assume: embed_dim and context_length, as of `plan`; of grids see dalle2_step.
      channels_last: torch's other memory layout of images and convolutions.

    Raises UsageError for any other config.
    """
    import torch

    config = read_config(config)
    parts = {"prior": _prior, "decoder": _decoder, "embedding_prior": dalle2_step.make}
    backbone = config.model.get("backbone", "unet")
    caption = None if config.stage == "embedding_prior" else "clip_states"
    if config.stage not in parts or config.model.get("caption") != caption:
        backbone = None
    if backbone != "unet" or config.compute_dtype != "float32":
        raise UsageError(
            "--versus=torch: expected the config of a prior or of a decoder with a "
            "UNet, in float32, with model.caption 'clip_states', or of an "
            "embedding_prior in float32"
        )
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    modules, loss = parts[config.stage](config, assume)
    if channels_last:
        for module in modules:
            module.to(memory_format=torch.channels_last)
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        parameters,
        lr=options.learning_rate,
        betas=(options.b1, options.b2),
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - config.ema_decay)

    step()
    return step, {"parameters": sum(p.numel() for p in parameters)}


def _noised(x_0):
    """(x_t, t, noise) of the cosine schedule."""
    import diffusers
    import torch

    scheduler = diffusers.UnCLIPScheduler(num_train_timesteps=1000)
    t, noise = torch.randint(0, 1000, (len(x_0),)), torch.randn_like(x_0)
    return scheduler.add_noise(x_0, noise, t), t, noise


def _prior(config, assume):
    import diffusers
    import torch

    model, rows = config.model, config.batch_size
    length, dim = assume["context_length"], assume["embed_dim"]
    module = diffusers.PriorTransformer(
        num_attention_heads=model["num_heads"],
        attention_head_dim=model["width"] // model["num_heads"],
        num_layers=model["depth"],
        embedding_dim=dim,
        num_embeddings=length,
        additional_embeddings=4,
    )
    for name in ("clip_mean", "clip_std"):
        getattr(module, name).requires_grad_(False)
    image, text = torch.randn(2, rows, dim)
    states, mask = torch.randn(rows, length, dim), torch.ones(rows, length)

    def loss():
        x_t, t, _ = _noised(image)
        out = module(
            x_t,
            t,
            proj_embedding=text,
            encoder_hidden_states=states,
            attention_mask=mask,
        )
        return torch.nn.functional.mse_loss(out.predicted_image_embedding, image)

    return [module], loss


def _decoder(config, assume):
    import diffusers
    import torch
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    model, rows, size = config.model, config.batch_size, assume.get("image_size", 64)
    length, dim = assume["context_length"], assume["embed_dim"]
    channels = [model["channels"] * mult for mult in model["channel_mult"]]
    sides = [size // 2**i for i in range(len(channels))]
    attends = [side in model["attention_resolutions"] for side in sides]

    def blocks(direction):
        kinds = {True: "SimpleCrossAttn", False: "Resnet"}
        where = {"Down": {True: "Down", False: "Downsample"}}
        where["Up"] = {True: "Up", False: "Upsample"}
        return tuple(f"{kinds[a]}{where[direction][a]}Block2D" for a in attends)

    unet = diffusers.UNet2DConditionModel(
        sample_size=size,
        in_channels=3,
        out_channels=6,
        block_out_channels=channels,
        layers_per_block=model["num_res_blocks"],
        resnet_time_scale_shift="scale_shift",
        down_block_types=blocks("Down"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=blocks("Up")[::-1],
        cross_attention_dim=model["text_width"],
        attention_head_dim=model.get("head_channels", 64),
        class_embed_type="identity",
    )
    projection = UnCLIPTextProjModel(
        clip_extra_context_tokens=model["num_clip_tokens"],
        clip_embeddings_dim=dim,
        time_embed_dim=4 * channels[0],
        cross_attention_dim=model["text_width"],
    )
    # it is for sampling alone, with guidance
    projection.learned_classifier_free_guidance_embeddings.requires_grad_(False)
    x_0 = torch.rand(rows, 3, size, size) * 2 - 1
    image, text = torch.randn(2, rows, dim)
    states = torch.randn(rows, length, dim)

    def loss():
        x_t, t, noise = _noised(x_0)
        conditions: dict[str, Any] = dict(
            image_embeddings=image,
            prompt_embeds=text,
            text_encoder_hidden_states=states,
            do_classifier_free_guidance=False,
        )
        context, emb = projection(**conditions)
        out = unet(x_t, t, encoder_hidden_states=context, class_labels=emb).sample
        error = torch.nn.functional.mse_loss(out[:, :3], noise)
        return error + 1e-3 * out[:, 3:].square().mean()

    return [unet, projection], loss
