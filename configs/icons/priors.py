"""Both priors of an export on held-out captions, side by side.

    python -m unclip_jax.evaluate --config=configs/icons/priors.py \\
        --workdir=runs/icons/priors

Prints a row per prior and what to read it against; writes priors.json.
"""

import ml_collections


def get_config():
    """Every key is required; an unknown key is refused."""
    c = ml_collections.ConfigDict()
    c.model = "exports/icons"  # folder written by unclip_jax.export
    c.data = dict(source="records", path="runs/icons/records/validation")
    c.count = 1000  # captions, drawn from the records by the seed
    c.seed = 0
    c.batch_size = 128
    c.priors = dict(  # row -> options of UnCLIP.sample_embeddings
        diffusion=dict(prior="diffusion", guidance=2.0, num_candidates=2, steps=25),
        autoregressive=dict(prior="autoregressive", guidance=1.0, num_candidates=1),
    )
    return c
