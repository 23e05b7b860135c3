"""CLIP on icons, the first stage: four minutes on two CPU cores.

    python -m unclip_jax.train --config=configs/icons/clip.py --workdir=runs/icons/clip

Also trains the tokenizer, on the captions, into runs/icons/clip/tokenizer.
"""

from configs import common


def get_config():
    """24 nouns x 8 colours x 7 other backgrounds, 15% of them held out."""
    c = common.train("clip", steps=800, batch_size=128, ema_decay=0.98)
    c.data = common.icons(
        split="train",
        feed="arrays",
        tokenizer="",  # "" trains one on the captions; or a folder or public name
        vocab_size=640,
    )
    c.model = dict(
        embed_dim=64,
        patch_size=8,
        vision_width=128,
        vision_depth=4,
        vision_heads=4,
        text_width=128,
        text_depth=2,
        text_heads=4,
    )
    c.optimizer = common.adamw(1e-3, 50, "cosine", weight_decay=0.05, b2=0.98, eps=1e-6)
    c.log_every = 20
    c.checkpoint = dict(every=400)
    held_out = dict(split="held_out")  # combinations that training never sees
    colours = ("red", "blue", "yellow", "white", "black", "green", "purple", "orange")
    c.evaluators = dict(  # scores in metrics.jsonl, of the EMA; 256 pictures, 24 nouns
        retrieval=dict(every=200, count=256, data=held_out),
        zero_shot=dict(
            every=200,
            count=512,
            data=held_out,
            label="noun",
            templates=tuple(f"a picture of a {colour} {{}}" for colour in colours),
        ),
    )
    return c
