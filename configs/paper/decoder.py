"""The paper's decoder: 64x64 pictures from CLIP embeddings and captions, on a pod.

    python -m unclip_jax.train --config=configs/paper/decoder.py \\
        --workdir=runs/paper/decoder

3.56B parameters: image tower 2.24B, text tower 1.21B, token embedding 0.10B. An export
draws as table 3 says, by 250 ancestral steps with the learned variance, at the guidance
of the paper's best FID.
"""

from configs import common


def get_config():
    """Table 3, column "64"."""
    c = common.train_on_pod("decoder", steps=800_000, batch_size=2048, fsdp=16)
    c.ema_decay = 0.9999
    c.data = common.records("paper")
    # text encoder context: 256 tokens, which the records decide (CLIP reads the same)
    c.model = dict(
        channels=512,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attention_resolutions=(32, 16, 8),
        head_channels=64,
        num_clip_tokens=4,
        learned_sigma=True,
        dropout=0.1,
        text_width=2048,
        text_depth=24,
        text_heads=32,
        scan_layers=True,
        remat=True,
    )
    c.diffusion = dict(
        schedule="cosine",
        num_steps=1000,
        prediction="epsilon",
        sampler="ddpm",  # the last four: how an export draws, unless asked otherwise
        sampling_steps=250,
        variance="learned_range",
        guidance=1.25,
    )
    c.stage_options = dict(
        drop_clip=0.1, drop_text=0.5, embedding="unit_scaled", preview_steps=50
    )
    c.optimizer = common.adamw(
        1.2e-4, 1000, weight_decay=0.0, b1=0.9, b2=0.999, eps=1e-8
    )
    c.preview = dict(every=5000)
    return c
