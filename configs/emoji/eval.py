"""Evaluate the emoji model on emoji it has never seen.

python -m unclip_jax.evaluate --config=configs/emoji/eval.py --workdir=runs/emoji/eval

Writes results.json, pictures.jsonl, samples.png and report.html into the workdir.
"""

import ml_collections


def get_config():
    """Every key is required; an unknown key is refused."""
    c = ml_collections.ConfigDict()
    c.model = "exports/emoji"  # folder written by unclip_jax.export
    c.data = dict(  # where captions and true pictures come from
        source="parquet",
        path="data/emoji64",
        files="validation*.parquet",
        image_size=64,  # what the decoder draws
    )
    c.count = 224  # captions
    c.select = "first"  # of the source in its order, or "random" by the seed
    c.seed = 0  # of all noise; picture i depends on (seed, i) and its caption only
    c.generation = dict(
        batch_size=32,
        prior_guidance=2.0,
        decoder_guidance=3.0,
        num_candidates=2,
        prior_steps=25,
        decoder_steps=25,
    )
    c.reference = dict(  # real pictures for distances between distributions
        data=dict(files="train*.parquet"),  # what differs from config.data
        count=1000,  # 0: none
    )
    c.metrics = dict(
        clip_score=dict(convention="cosine"),
        r_precision=dict(pool=100),
        frechet_clip=dict(metric="frechet", features="clip"),
    )
    c.report = dict(pictures=48, columns=6)
    return c
