"""Brain decoding in small: voxels of several subjects -> a grid of tokens.

    python -m unclip_jax.train --config=configs/any/voxels_to_tokens.py \\
        --workdir=runs/any_voxels/prior

configs/any/align_voxels.py makes its data; `:bfloat16` after the name computes in that.
"""

from configs import common
from configs.any.align_voxels import SUBJECTS


def get_config(variant=""):
    """Every token sees every other; 2 layers of width 128 for all subjects."""
    common.check_variant(variant, "bfloat16")
    c = common.train("embedding_prior", steps=10_000, batch_size=32, ema_decay=0.999)
    c.compute_dtype = variant or "float32"
    records = "runs/any_voxels/records"
    c.data = dict(source="aligned", path=f"{records}/train", feed="arrays")
    c.model = dict(width=128, depth=2, num_heads=4, causal=False, queries=False)
    # which subject it is, the voxels that are there say
    c.stage_options = dict(conditions=[f"voxels_{subject}" for subject in SUBJECTS])
    c.optimizer = common.adamw(1e-3, 100, "cosine", weight_decay=0.01)
    c.checkpoint = dict(every=2000)
    data = dict(path=f"{records}/validation")
    c.evaluators = dict(embedding=dict(every=5000, count=600, data=data))
    return c
