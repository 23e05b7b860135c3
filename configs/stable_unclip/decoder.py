"""Stable unCLIP 2.1's decoder: fine-tunes the public weights, or trains it anew.

    python -m unclip_jax.train --config=configs/stable_unclip/decoder.py \\
        --config.init_from=stable-diffusion-2-1-unclip \\
        --workdir=runs/stable_unclip/decoder

on what configs/stable_unclip/embed.py wrote; of -small, too, for which the records'
embeddings have 768 numbers. Embeddings are noised to a level that the decoder is told.

870M parameters: 20 bytes each with gradient, optimizer and average, 17 GB in all.
"""

from configs import common


def get_config():
    """The published sizes; the rates of a fine-tuning, which were not published."""
    c = common.train_on_pod("decoder", steps=10_000, batch_size=128)
    c.ema_decay = 0.999
    c.data = common.records("stable_unclip")
    c.autoencoder = "stable-diffusion-2-1-unclip"
    c.model = dict(
        backbone="stable_diffusion",
        pad_id=0,  # "!", which fills captions up
        channels=320,
        channel_mult=(1, 2, 4, 4),
        num_heads=(5, 10, 20, 0),
        mid_heads=20,
        remat=True,
    )
    c.diffusion = dict(
        schedule="scaled_linear",
        prediction="v",
        augmentation=dict(schedule="cosine", num_steps=1000),
        sampler="ddim",  # the last five: as its pipeline draws
        sampling_steps=20,
        spacing="leading+1",
        to_x0=False,
        guidance=10.0,
    )
    c.stage_options = dict(embedding="raw", drop_text=0.1, preview_guidance=10.0)
    c.optimizer = common.adamw(1e-5, 500)
    c.checkpoint = dict(every=1000)
    c.preview = dict(every=1000)
    return c
