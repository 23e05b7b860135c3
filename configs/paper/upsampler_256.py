"""The paper's first upsampler: 64 -> 256 pixels, on a pod.

    python -m unclip_jax.train --config=configs/paper/upsampler_256.py \\
        --workdir=runs/paper/upsampler_256

691.6M parameters. `upsampler_256.py:efficient` works on patches of 2x2 pixels and has
its blocks where pictures are small: 766M parameters, a quarter of the arithmetic (and
of the time: 1/4.0 for a gradient at a tenth of the width on a CPU).
"""

import ml_collections

EFFICIENT = dict(patch_size=2, num_res_blocks=(2, 3, 3, 4))


def get_config(variant=""):
    """Table 3, column "64 -> 256"."""
    if variant not in ("", "efficient"):
        raise ValueError(f"variant {variant!r}: expected 'efficient', or none")
    c = ml_collections.ConfigDict()
    c.stage = "upsampler"
    c.seed = 0
    c.steps = 1_000_000
    c.batch_size = 1024
    c.grad_accum = 1
    c.compute_dtype = "bfloat16"
    c.data = dict(  # pictures of 256 pixels, of which crops of a quarter are seen
        source="webdataset",  # or any other of docs/data.md
        path="data/train",
        cache="runs/paper/index",  # data/ may be read-only
        image_size=256,
        min_size=256,  # what is smaller is left out: enlarged, it would teach blur
        feed="tf",
        degradation=dict(kind="crop", crop=64),
    )
    c.model = dict(
        low_res_size=64,
        channels=320,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=(3, 3, 3, 3),
        patch_size=1,
        scale_shift=False,
        learned_sigma=False,
        dropout=0.1,
        remat=True,
    )
    c.diffusion = dict(
        schedule="cosine",
        num_steps=1000,
        prediction="epsilon",
        min_snr_gamma=None,
        sampler="ddim",
        sampling_steps=27,
    )
    c.stage_options = dict(  # shrunk as the decoder's own training images are
        downsample="bicubic", blur_probability=0.5, blur_kernel=3, blur_sigma=0.6
    )
    c.optimizer = dict(
        learning_rate=1.2e-4,
        weight_decay=0.0,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        warmup_steps=1000,  # unstated, as are the decay and the clipping
        schedule="constant",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.9999
    c.mesh = dict(data=-1, fsdp=8, tensor=1)
    c.sharding_rules = ()
    c.log_every = 50
    c.checkpoint = dict(every=5000, keep=3)
    c.preview = dict(every=5000, count=16)
    if variant == "efficient":
        c.model.update(EFFICIENT)
    return c
