"""The paper's prior with Muon and averages of any length: see docs/recipe.md.

    python -m unclip_jax.train --config=configs/modern/prior.py \\
        --workdir=runs/modern/prior

Model and objective are the paper's, a transformer that predicts x_0. Nobody has trained
it at this scale.
"""

from configs.modern.decoder import modern_training
from configs.paper import prior


def get_config():
    """configs/paper/prior.py, but for the optimizer."""
    c = prior.get_config()
    c.diffusion.variance = "fixed_small"  # a table of analytic ones is of one average
    modern_training(c)
    return c
