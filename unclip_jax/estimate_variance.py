"""Estimates the variances of Analytic-DPM and adds them to an export.

    python -m unclip_jax.estimate_variance --model=exports/icons \\
        --records=runs/icons/records/train

`sample --decoder_variance=analytic` and `--prior_variance=analytic` need them. One
table per model (prior, decoder) goes into the export, with its provenance. The same
command continues where it was stopped; a larger --count refines the tables.
"""

from unclip_jax import command_line

FLAGS = {
    "model": (command_line.REQUIRED, "folder of the export, which receives the tables"),
    "records": (command_line.REQUIRED, "folder of records made by unclip_jax.embed"),
    "parts": ("prior,decoder", "models to estimate, of those in the export"),
    "count": (256, "examples to draw from the records"),
    "timesteps": (50, "number of timesteps to estimate at; linear in between"),
    "seed": (0, "seed of the examples and of the noise"),
    "batch_size": (32, "examples at a time"),
    "dtype": ("float32", "of the computation: float32 or bfloat16"),
}


def main(args):
    """Writes the tables into the export args.model."""
    from unclip_jax.evaluation.analytic_variance import estimate_variance

    estimate_variance(args)


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS)
