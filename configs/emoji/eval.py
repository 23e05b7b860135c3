"""Evaluate the emoji model on emoji it has never seen.

python -m unclip_jax.evaluate --config=configs/emoji/eval.py --workdir=runs/emoji/eval

Writes results.json, pictures.jsonl, samples.png and report.html into the workdir.

--config=configs/emoji/eval.py:epsilon evaluates the stack whose decoder is that of
configs/emoji/decoder_epsilon.py, exported to exports/emoji_epsilon, with the sampler of
the paper: 250 ancestral steps with the learned variance.
"""

import ml_collections


def get_config(variant=""):
    """Every key is required; an unknown key is refused."""
    if variant not in ("", "epsilon"):
        raise ValueError(f"variant {variant!r}: expected 'epsilon', or none")
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
    if variant == "epsilon":
        c.model = "exports/emoji_epsilon"
        c.generation.decoder_sampler = "ddpm"
        c.generation.decoder_steps = 250
        c.generation.decoder_guidance = 1.5
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
