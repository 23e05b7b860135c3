"""The paper's first upsampler: 64 -> 256 pixels, on a pod.

    python -m unclip_jax.train --config=configs/paper/upsampler_256.py \\
        --workdir=runs/paper/upsampler_256

691.6M parameters. `upsampler_256.py:efficient` works on patches of 2x2 pixels and has
its blocks where pictures are small: 766M parameters, a quarter of the arithmetic (and
of the time: 1/4.0 for a gradient at a tenth of the width on a CPU).
"""

from configs import common


def get_config(variant=""):
    """Table 3, column "64 -> 256"."""
    common.check_variant(variant, "efficient")
    c = common.train_on_pod("upsampler", steps=1_000_000, batch_size=1024)
    c.ema_decay = 0.9999
    # pictures of 256 pixels, of which crops of a quarter are seen
    c.data = common.photos(256, degradation=dict(kind="crop", crop=64))
    c.model = dict(
        low_res_size=64,
        channels=320,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=(3, 3, 3, 3),
        patch_size=1,
        scale_shift=False,
        dropout=0.1,
        remat=True,
    )
    c.diffusion = dict(schedule="cosine", sampler="ddim", sampling_steps=27)
    # shrunk as the decoder's own training images are
    c.stage_options = dict(blur_probability=0.5, blur_kernel=3, blur_sigma=0.6)
    c.optimizer = common.adamw(
        1.2e-4, 1000, weight_decay=0.0, b1=0.9, b2=0.999, eps=1e-8
    )
    c.checkpoint.every = 5000
    c.preview = dict(every=5000)
    if variant == "efficient":
        c.model.update(patch_size=2, num_res_blocks=(2, 3, 3, 4))
    return c
