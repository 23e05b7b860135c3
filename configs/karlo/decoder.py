"""Karlo's decoder: fine-tunes the public weights, or trains the same anew.

    python -m unclip_jax.embed --config=configs/icons/embed.py --config.clip=CLIP \\
        --config.text_states=True --config.data=... --workdir=runs/karlo/records
    python -m unclip_jax.train --config=configs/karlo/decoder.py \\
        --config.init_from=KARLO --workdir=runs/karlo/decoder

CLIP is a native export of Karlo's CLIP (ViT-L/14), KARLO the folder of its pipeline in
diffusers' format, or a native export with a decoder. Without init_from the decoder
starts from nothing. Pictures of the records have 64 pixels.

893M parameters, 20 bytes each with gradient, optimizer and average: 18 GB in all.
"""

from configs import common


def get_config():
    """The published sizes; the rates of a fine-tuning, which were not published."""
    c = common.train_on_pod("decoder", steps=20_000, batch_size=256)
    c.ema_decay = 0.999
    c.data = common.records("karlo")  # 768 numbers and 77 tokens, which they decide
    c.model = dict(
        channels=320,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attention_resolutions=(32, 16, 8),
        caption="clip_states",
        text_width=1536,
        num_clip_tokens=4,
        learned_sigma=True,
        scale_shift=True,
        remat=True,
    )
    # how Karlo draws
    c.diffusion = dict(
        sampler="ddpm", sampling_steps=25, variance="learned_range", guidance=8.0
    )
    c.stage_options = dict(embedding="raw", preview_guidance=4.0)
    c.optimizer = common.adamw(1e-5, 500)
    c.checkpoint = dict(every=1000)
    c.preview = dict(every=1000)
    return c
