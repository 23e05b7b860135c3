"""Trains one stage. Run the same command again to resume.

    python -m unclip_jax.train --config=configs/icons/prior.py --workdir=runs/prior

On several hosts start it on each of them. TPU pods, SLURM and Open MPI are recognized;
elsewhere give --coordinator, --num_processes and --process_id.
"""

from unclip_jax import config as config_lib
from unclip_jax.parallel import flags

FLAGS = {
    "restore_step": (int, "go on from this checkpoint; newer ones are set aside"),
    "profile_steps": ("", "first:last: write a profiler's trace of these steps"),
    **flags.FLAGS,
}


def main(args):
    """Trains the stage of args.config in args.workdir."""
    from unclip_jax.interop.initial import load_initial
    from unclip_jax.training.command import train

    train(args, load_initial)


if __name__ == "__main__":
    config_lib.run(main, extra_flags=FLAGS)
