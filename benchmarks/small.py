"""Models that one or two cores train, for benchmarks of a step.

--config=benchmarks/small.py:prior      21M parameters, batches of 32
--config=benchmarks/small.py:decoder    31M parameters, 64 pixels, batches of 4
--config=benchmarks/small.py:grid       configs/any/token_grid.py, batches of 1
"""

import ml_collections

from configs.any import token_grid
from configs.common import check_variant
from configs.karlo import decoder, prior

BATCHES = {"prior": 32, "decoder": 4, "grid": 1}


def get_config(variant="prior"):
    """float32, without clipping, as PyTorch's training scripts have it."""
    check_variant(variant, *BATCHES)
    variant = variant or "prior"
    modules = {"prior": prior, "decoder": decoder, "grid": token_grid}
    c = modules[variant].get_config()
    c.update(compute_dtype="float32", batch_size=BATCHES[variant])
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.optimizer = dict(learning_rate=1e-4, weight_decay=0.01, b1=0.9, b2=0.96)
    with ml_collections.ConfigDict(c.model).unlocked() as model:
        if variant == "decoder":
            model.update(channels=64, num_res_blocks=2, text_width=512, remat=False)
        else:
            model.update(scan_layers=False, remat="none")
        if variant == "prior":
            model.update(width=512, depth=6, num_heads=8)
        c.model = model
    return c
