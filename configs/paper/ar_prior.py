"""The paper's autoregressive prior: 24 layers of width 1664, on a pod.

    python -m unclip_jax.train --config=configs/paper/ar_prior.py \\
        --workdir=runs/paper/ar_prior

1.21B parameters of text encoder, 0.82B of latent decoder, and 0.10B of token embedding.
"""

from configs import common


def get_config():
    """Table 3, column "AR prior"."""
    c = common.train_on_pod("ar_prior", steps=1_000_000, batch_size=4096)
    c.ema_decay = 0.999
    c.data = common.records("paper")
    # text encoder context: 256 tokens, which the records decide (CLIP reads the same)
    c.model = dict(
        width=1664,
        depth=24,
        num_heads=26,
        context=384,
        text_width=2048,
        text_depth=24,
        text_heads=32,
        num_components=319,
        num_buckets=1024,
        scan_layers=True,
        remat="full",
    )
    c.stage_options = dict(drop_text=0.1, embedding="unit_scaled")
    c.optimizer = common.adamw(
        1.6e-4, 1000, weight_decay=4.0e-2, b1=0.9, b2=0.91, eps=1e-10
    )
    return c
