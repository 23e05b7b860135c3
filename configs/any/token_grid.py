"""A prior of MindEye2's shape: 256 tokens of 1664 numbers, from 256 tokens.

    python -m unclip_jax.plan --config=configs/any/token_grid.py --topology=v5e:2x2 \\
        --config.batch_size=128 --assume=embed_dim=1664 --assume=target_tokens=256 \\
        --assume=condition_tokens=256
    python -m unclip_jax.train --config=configs/any/token_grid.py \\
        --workdir=runs/any_grid/prior

Data as of configs/any/align.py: a target (n, 256, 1664), a condition of that shape.
The plan is of four v5e, the smallest slice, with 32 examples and a whole state each.
"""

from configs import common


def get_config():
    """6 layers of the target's width; bfloat16, blocks computed again."""
    c = common.train("embedding_prior", steps=100_000, batch_size=32)
    c.compute_dtype = "bfloat16"
    c.data = dict(source="aligned", path="runs/any_grid/records/train", feed="arrays")
    c.model = dict(width=1664, depth=6, num_heads=26, causal=False, queries=False)
    c.model.update(scan_layers=True, remat="full")
    c.stage_options = dict(drop=0.2)
    c.optimizer = common.adamw(3e-4, 1000, "cosine", weight_decay=0.01)
    c.checkpoint = dict(every=2000)
    return c
