"""Trains one stage; the same command again resumes the run.

    python -m unclip_jax.train --config=configs/icons/prior.py \\
        --workdir=runs/icons/prior

On several hosts start it on each of them. TPU pods, SLURM and Open MPI are recognized;
elsewhere give --coordinator, --num_processes and --process_id.
"""

from unclip_jax import command_line

FLAGS = {
    "restore_step": (int, "continue from this checkpoint; newer ones are set aside"),
    "allow_change": ("", "KEY,...: of the config, that may differ on resuming"),
    "profile_steps": ("", "FIRST:LAST: write a profiler's trace of these steps"),
}


def defaults(config):
    """What TrainConfig and the stage have for keys that `config` leaves out."""
    from unclip_jax.training.run_config import config_defaults

    return config_defaults(config)


def main(args):
    """Trains the stage of args.config in args.workdir."""
    from unclip_jax.interop.frozen_autoencoder import FrozenAutoencoder
    from unclip_jax.interop.init_from import load_initial
    from unclip_jax.training import loop
    from unclip_jax.training.checkpoint import load_run
    from unclip_jax.training.run_config import read_config

    def load_autoencoder(folder, dtype):
        return FrozenAutoencoder.load(folder, load_run, dtype)

    loop.train(
        read_config(args.config),
        args.workdir,
        load_initial=load_initial,
        load_autoencoder=load_autoencoder,
        restore_step=args.restore_step,
        allow_change=[key for key in args.allow_change.split(",") if key],
        profile_steps=args.profile_steps,
    )


if __name__ == "__main__":
    command_line.run(main, defaults=defaults, extra_flags=FLAGS, distributed=True)
