"""Evaluate the emoji model on emoji it has never seen.

python -m unclip_jax.evaluate --config=configs/emoji/eval.py --workdir=runs/emoji/eval

Writes results.json, pictures.jsonl, samples.png and report.html into the workdir.
"""

from configs import common
from configs.icons.eval import get_config as icons


def get_config():
    """What is measured on icons, without what only icons have."""
    c = icons()
    c.model = "exports/emoji"
    c.data = common.emoji(files="validation*.parquet")
    c.generation.decoder_guidance = 3.0
    c.reference.data = dict(files="train*.parquet")
    del c.metrics["icons"]
    return c
