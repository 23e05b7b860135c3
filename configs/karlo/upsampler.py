"""Karlo's super-resolution, 64 -> 256 pixels: fine-tunes the public weights.

    python -m unclip_jax.train --config=configs/karlo/upsampler.py \\
        --config.init_from=KARLO --workdir=runs/karlo/upsampler

KARLO is the folder of its pipeline in diffusers' format, or a native export with an
upsampler_256. Karlo takes seven steps, the last of them with a second network; this
trains the first (super_res_first), which can take all of them. Without init_from it
starts from nothing.

692M parameters, 20 bytes each with gradient, optimizer and average: 14 GB in all.
"""

from configs import common


def get_config():
    """The published sizes; the rates of a fine-tuning, which were not published."""
    c = common.train_on_pod("upsampler", steps=20_000, batch_size=256)
    c.ema_decay = 0.999
    # pictures of 256 pixels, of which crops of a quarter are seen
    crops = dict(kind="crop", crop=64)
    c.data = dict(source="records", path="data/256/train", degradation=crops)
    c.model = dict(
        low_res_size=64,
        channels=320,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        resize="bicubic",
        scale_shift=False,
        learned_sigma=False,
        remat=True,
    )
    c.diffusion = dict(sampler="ddpm", sampling_steps=7, variance="fixed_small")
    c.stage_options = dict(blur_probability=0.0)
    c.optimizer = common.adamw(1e-5, 500)
    c.checkpoint = dict(every=1000)
    c.preview = dict(every=1000)
    return c
