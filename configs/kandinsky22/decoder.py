"""Kandinsky 2.2's decoder: fine-tunes the public weights, or trains the same anew.

    python -m unclip_jax.train --config=configs/kandinsky22/decoder.py \\
        --config.init_from=kandinsky-2-2-decoder --workdir=runs/kandinsky22/decoder

on what configs/kandinsky22/embed.py wrote: latents of 64x64 and embeddings. Without
init_from the decoder starts from nothing. To encode images while training instead, keep
them in the records: embed with --config.autoencoder= and --config.image_size=512.

1.25B parameters: 20 bytes each with gradient, optimizer and average, 25 GB in all.
"""

from configs import common


def get_config():
    """The published sizes; the rates of a fine-tuning, which were not published."""
    c = common.train_on_pod("decoder", steps=10_000, batch_size=128)
    c.ema_decay = 0.999
    c.data = common.records("kandinsky22")
    c.autoencoder = "kandinsky-2-2-decoder"
    c.model = dict(
        image_channels=4,
        channels=384,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attention_resolutions=(32, 16, 8),
        caption="none",
        clip_norm=True,
        text_width=768,
        num_clip_tokens=32,
        learned_sigma=True,
        remat=True,
    )
    c.diffusion = dict(
        schedule="linear:0.00085:0.012",
        # False leaves the published, discarded variance as it is
        train_variance=True,
        sampler="ddpm",  # the last five: as its pipeline draws
        sampling_steps=100,
        variance="fixed_small",
        spacing="leading",
        guidance=4.0,
    )
    c.stage_options = dict(
        embedding="raw",
        null_embedding="zero_image",  # in place of the 10% that are dropped
        preview_guidance=4.0,
    )
    c.optimizer = common.adamw(1e-5, 500)
    c.checkpoint = dict(every=1000)
    c.preview = dict(every=1000)
    return c
