"""Runs a frozen CLIP over a data source and writes records to train on.

    python -m unclip_jax.embed --config=configs/icons/embed.py --workdir=data/icons

Run the same command again to continue after an interruption.
"""

from unclip_jax import config as config_lib


def main(args):
    from unclip_jax.embedding.runner import embed
    from unclip_jax.training.checkpoint import load_run

    embed(args.config, args.workdir, load_run)


if __name__ == "__main__":
    config_lib.run(main)
