"""The paper's kind of decoder on icons: epsilon and a learned variance, 32x32 images.

    python -m unclip_jax.train --config=configs/icons/decoder_epsilon.py \\
        --workdir=runs/icons/decoder_epsilon

Made for one GPU. Takes the place of configs/icons/decoder.py; the other stages stay as
they are, whatever their stage_options.embedding, because embeddings pass from a prior
to a decoder as CLIP makes them.
"""

from configs import common


def get_config():
    """Table 3's recipe, column "64", at icon size; what is smaller is the model.

    configs/icons/decoder.py predicts x0 because its 4x4 grid, patches of 8 pixels,
    cannot carry the noise. This one works on pixels, as the paper's does.
    """
    c = common.train("decoder", steps=8000, batch_size=128, ema_decay=0.999)
    c.compute_dtype = "bfloat16"
    c.data = common.records("icons", feed="arrays")
    c.model = dict(
        channels=64,
        channel_mult=(1, 2, 3),
        num_res_blocks=2,
        attention_resolutions=(8,),
        head_channels=32,
        learned_sigma=True,
        text_width=64,
        text_depth=1,
        text_heads=2,
    )
    c.diffusion = dict(
        sampler="ddpm", sampling_steps=250, variance="learned_range", guidance=1.5
    )
    c.stage_options = dict(
        embedding="unit_scaled", preview_steps=50, preview_guidance=2.0
    )
    c.optimizer = common.adamw(5e-4, 200)
    c.preview = dict(every=1000)
    return c
