"""What the command `python -m unclip_jax.train` does."""

import os
import sys
import traceback
from collections.abc import Callable

import jax

from unclip_jax.parallel import processes


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

    together(
        run,
        args.distributed,
        args.coordinator,
        args.num_processes,
        args.process_id,
        connect_timeout=args.connect_timeout,
        heartbeat_timeout=args.heartbeat_timeout,
    )


def together(run: Callable[[], None], *which, **timeouts) -> None:
    """Calls run() once all processes have met; a lost one ends all of them.

    Args:
      run: the work.
      which, timeouts: see processes.initialize.

    Raises what `run` does in a run of one process. With several, a process that fails
    says why and exits at once with code 1 (2 for a mistake in what was asked): waiting
    for the others, which wait for it in the middle of a step, could take minutes.
    """
    processes.initialize(*which, **timeouts)
    if jax.process_count() == 1:
        return run()
    me = f"process {jax.process_index()} of {jax.process_count()}"
    try:
        return run()
    except (ValueError, OSError) as error:
        _leave(f"{me}: {error}", 2)
    except Exception as error:
        runtime = isinstance(error, jax.errors.JaxRuntimeError)
        if not (runtime and processes.lost_peer(error)):
            traceback.print_exc()
            _leave(f"{me} failed", 1)
        reason = " ".join(str(error).split())[:300]
        _leave(
            f"{me}: another process of the run was lost ({reason}); start the same "
            "command on every host: it goes on from the last saved step",
            1,
        )


def _leave(message: str, code: int):
    print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # leaving politely waits for processes that may be gone
