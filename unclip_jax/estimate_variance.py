"""Adds to an export what --decoder_variance=analytic needs.

    python -m unclip_jax.estimate_variance --model=exports/icons \\
        --records=data/icons/train

One table per part (prior, decoder) goes into the export, with how it was made. The same
command goes on where it was stopped; with a larger --count it adds to what is there.
"""

from unclip_jax import config as config_lib

FLAGS = {
    "model": (config_lib.REQUIRED, "folder of an export, which gets the tables"),
    "records": (config_lib.REQUIRED, "folder of records made by unclip_jax.embed"),
    "parts": ("prior,decoder", "whose tables; those that the export has"),
    "count": (256, "examples to draw from the records"),
    "timesteps": (50, "at which the model is run; linear in between"),
    "seed": (0, "of the draw and of the noise"),
    "batch_size": (32, "examples at a time"),
    "dtype": ("float32", "float32 or bfloat16"),
}


def main(args):
    """Writes the tables into the export args.model."""
    from unclip_jax.evaluation.analytic_variance import estimate_variance

    estimate_variance(args)


if __name__ == "__main__":
    config_lib.run(main, config=False, extra_flags=FLAGS)
