"""Evaluate the icons model on combinations it has never seen.

python -m unclip_jax.evaluate --config=configs/icons/eval.py --workdir=runs/icons/eval

Writes results.json, pictures.jsonl, samples.png and report.html into the workdir.

--config=configs/icons/eval.py:epsilon evaluates the stack whose decoder is that of
configs/icons/decoder_epsilon.py, exported to exports/icons_epsilon, with the sampler of
the paper: 250 ancestral steps with the learned variance.
"""

import ml_collections


def get_config(variant=""):
    """An unknown key is refused; configs/paper/eval_coco30k.py uses all there are."""
    if variant not in ("", "epsilon"):
        raise ValueError(f"variant {variant!r}: expected 'epsilon', or none")
    c = ml_collections.ConfigDict()
    c.model = "exports/icons"  # folder written by unclip_jax.export
    c.data = dict(  # where captions and true pictures come from
        source="icons",
        split="held_out",  # (noun, colour, background) triples kept out of training
        image_size=32,  # what the decoder draws
        nouns=24,  # these three as in training
        colours=8,
        backgrounds=8,
    )
    c.count = 224  # captions
    c.select = "first"  # of the source (icons are shuffled), or "random" by the seed
    c.seed = 0  # of all noise; picture i depends on (seed, i) and its caption only
    c.generation = dict(
        batch_size=32,
        prior_guidance=2.0,
        decoder_guidance=1.5,  # as the export recommends
        num_candidates=2,
        prior_steps=25,
        decoder_steps=25,
    )
    if variant == "epsilon":
        c.model = "exports/icons_epsilon"
        c.generation.decoder_sampler = "ddpm"
        c.generation.decoder_steps = 250
    c.reference = dict(  # real pictures for distances between distributions
        data=dict(split="train"),  # what differs from config.data
        count=1000,  # 0: none
    )
    c.metrics = dict(
        clip_score=dict(convention="cosine"),
        r_precision=dict(pool=100),
        frechet_clip=dict(metric="frechet", features="clip"),
        icons=dict(max_shift=2),
    )
    c.report = dict(pictures=48, columns=6)
    # FID besides: c.extractors.inception = dict(convention="pytorch-fid") and
    # c.metrics.fid = dict(); a curve over guidance: c.sweep.decoder_guidance = (1., 2.)
    c.extractors = dict()
    c.sweep = dict()
    return c
