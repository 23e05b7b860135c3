"""Trains a stage, or goes on with a run: start the same command again to resume.

python -m unclip_jax.train --config=configs/icons/prior.py --workdir=runs/icons/prior
"""

from unclip_jax import config as config_lib


def main(args) -> None:
    from unclip_jax.parallel import processes

    processes.initialize()
    from unclip_jax.training.loop import train

    train(args.config, args.workdir)


if __name__ == "__main__":
    config_lib.run(main)
