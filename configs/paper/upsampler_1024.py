"""The paper's second upsampler: 256 -> 1024 pixels, on a pod.

    python -m unclip_jax.train --config=configs/paper/upsampler_1024.py \\
        --workdir=runs/paper/upsampler_1024

267M parameters. `upsampler_1024.py:efficient` works on patches of 4x4 pixels and has
its blocks where pictures are small: 269M parameters, 1/17 of the arithmetic (and 1/14
of the time, for a gradient at a twelfth of the width on a CPU).
"""

from configs import common


def get_config(variant=""):
    """Table 3, column "256 -> 1024"."""
    common.check_variant(variant, "efficient")
    c = common.train_on_pod("upsampler", steps=1_000_000, batch_size=512)
    c.ema_decay = 0.9999
    # pictures of 1024 pixels, of which crops of a quarter are seen
    c.data = common.photos(1024, degradation=dict(kind="bsr", crop=256, scale=4))
    c.model = dict(
        low_res_size=256,
        channels=192,
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=(2, 2, 2, 2, 2, 2),
        patch_size=1,
        scale_shift=False,
        remat=True,
    )
    c.diffusion = dict(schedule="linear", sampler="ddim", sampling_steps=15)
    c.stage_options = dict(blur_probability=0.0)  # the data is degraded already
    c.optimizer = common.adamw(
        1.0e-4, 1000, weight_decay=0.0, b1=0.9, b2=0.999, eps=1e-8
    )
    c.checkpoint.every = 5000
    c.preview = dict(every=5000, count=8)
    if variant == "efficient":
        blocks = dict(channel_mult=(1, 1, 2, 4, 4), num_res_blocks=(1, 2, 2, 2, 3))
        c.model.update(patch_size=4, **blocks)
    return c
