"""The diffusion prior on emoji: captions -> CLIP image embeddings.

python -m unclip_jax.train --config=configs/emoji/prior.py --workdir=runs/emoji/prior
"""

from configs import common
from configs.icons import prior


def get_config():
    """The paper's sequence and losses; 4 layers of width 128 instead of 24 of 2048."""
    c = prior.get_config()
    c.steps = 800
    c.data.path = "runs/emoji/records/train"
    c.checkpoint.every = 400
    c.evaluators = common.score_prior("emoji", every=400, count=224)
    return c
