"""Evaluate the icons model on combinations it has never seen.

python -m unclip_jax.evaluate --config=configs/icons/eval.py --workdir=runs/icons/eval

Writes results.json, pictures.jsonl, samples.png and report.html into the workdir.

--config=configs/icons/eval.py:epsilon evaluates the stack whose decoder is that of
configs/icons/decoder_epsilon.py, exported to exports/icons_epsilon, with the sampler of
the paper: 250 ancestral steps with the learned variance.
"""

import ml_collections

from configs import common


def get_config(variant=""):
    """See unclip_jax/evaluation/config.py for every key and its default."""
    common.check_variant(variant, "epsilon")
    c = ml_collections.ConfigDict()
    c.model = "exports/icons"  # folder written by unclip_jax.export
    # (noun, colour, background) triples kept out of training, as the decoder draws them
    c.data = common.icons(split="held_out")
    c.count = 224  # captions
    c.generation = dict(num_candidates=2)  # all else is as the export recommends
    if variant == "epsilon":
        c.model = "exports/icons_epsilon"
    c.reference = dict(data=dict(split="train"), count=1000)  # real images
    c.metrics = dict(
        clip_score=dict(convention="cosine"),
        r_precision=dict(pool=100),
        frechet_clip=dict(metric="frechet", features="clip"),
        icons=dict(max_shift=2),
        border_noise=dict(),
    )
    # FID besides: c.extractors = dict(inception=dict(convention="pytorch-fid")) and
    # c.metrics.fid = dict(); a curve: c.sweep = dict(decoder_guidance=(1.0, 2.0))
    return c
