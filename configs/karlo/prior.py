"""Karlo's diffusion prior: fine-tunes the public weights, or trains the same anew.

    python -m unclip_jax.embed --config=configs/icons/embed.py --config.clip=CLIP \\
        --config.text_states=True --config.data=... --workdir=runs/karlo/records
    python -m unclip_jax.train --config=configs/karlo/prior.py \\
        --config.init_from=KARLO --workdir=runs/karlo/prior

CLIP is a native export of Karlo's CLIP (ViT-L/14), KARLO the folder of its pipeline
in diffusers' format, or of the prior in it; or a native export with a prior. Without
init_from the prior starts from nothing. Kandinsky's 2.2 differs in its CLIP (bigG, 1280
numbers), which the records bring along, and in --config.diffusion.clip=10.

1.02B parameters: 20 bytes each with gradient, optimizer and average, 20 GB in all.
"""

from configs import common


def get_config():
    """The published sizes; the rates of a fine-tuning, which were not published."""
    c = common.train_on_pod("prior", steps=20_000, batch_size=512)
    c.ema_decay = 0.999
    c.data = common.records("karlo")  # 768 numbers and 77 tokens, which they decide
    c.model = dict(
        caption="clip_states",
        width=2048,
        depth=20,
        num_heads=32,
        scan_layers=True,
        remat="full",
    )
    c.diffusion = dict(
        clip=5.0,
        sampler="ddpm",  # the last four: as Karlo draws
        sampling_steps=25,
        variance="fixed_small",
        guidance=4.0,
    )
    c.optimizer = common.adamw(1e-5, 500, weight_decay=6.0e-2, b2=0.96, eps=1e-6)
    c.checkpoint = dict(every=1000)
    return c
