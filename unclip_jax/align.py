"""Puts arrays of targets and conditions together, as data for an embedding prior.

    python -m unclip_jax.align --config=configs/any/align.py --workdir=runs/any/records

Targets are a frozen encoder's embeddings, conditions whatever is to predict them:
arrays in .npy, .npz or .parquet files, aligned by row or by key. A folder per split is
written to workdir. With --inspect nothing is: the arrays are counted and described.
"""

from unclip_jax import command_line

FLAGS = {"inspect": (False, "report on the arrays; write nothing")}


def defaults(config):
    """What AlignConfig has for keys that `config` leaves out."""
    from unclip_jax.data.aligned.config import config_defaults

    return config_defaults(config)


def main(args):
    """Writes the arrays of args.config, or reports on them."""
    from unclip_jax.data.aligned import alignment, inspection, writer
    from unclip_jax.data.aligned.config import read_config

    config = read_config(args.config)
    aligned = alignment.align(config)
    inspection.report(aligned)
    if not args.inspect:
        writer.write(config, aligned, args.workdir)


if __name__ == "__main__":
    command_line.run(main, defaults=defaults, extra_flags=FLAGS)
