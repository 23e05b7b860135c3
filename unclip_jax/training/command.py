"""What the command `python -m unclip_jax.train` does."""

from unclip_jax.parallel.together import together


def train(args, load_initial) -> None:
    """Joins the other processes, if there are any, then trains.

    Args:
      args: the flags of unclip_jax.train.
      load_initial: see loop.train.
    """

    def run():
        from unclip_jax.training import loop  # after joining: it may touch the devices

        loop.train(
            args.config,
            args.workdir,
            load_initial=load_initial,
            restore_step=args.restore_step,
            profile_steps=args.profile_steps,
        )

    together(run, args)
