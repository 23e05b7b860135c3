"""What the command `python -m unclip_jax.train` does."""

from unclip_jax.parallel import processes


def train(args) -> None:
    """Joins the other processes, if there are any, then trains.

    Args:
      args: config, workdir, distributed, coordinator, num_processes, process_id.
    """
    processes.initialize(
        args.distributed, args.coordinator, args.num_processes, args.process_id
    )
    from unclip_jax.training import loop  # after joining: it may touch the devices

    loop.train(args.config, args.workdir)
