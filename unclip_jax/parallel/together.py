"""The work of a command, done by all of its processes together."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax

from unclip_jax.parallel import distributed


def together(run: Callable[[], Any], args) -> Any:
    """Calls run() once all processes have met; a lost one ends all of them.

    Args:
      run: the work.
      args: has the attributes that flags.FLAGS names.

    Raises what `run` does in a run of one process. With several, a process that fails
    says why and exits at once with code 1 (2 for a mistake in what was asked): waiting
    for the others, which wait for it in the middle of a step, could take minutes.
    """
    distributed.initialize(
        args.distributed,
        args.coordinator,
        args.num_processes,
        args.process_id,
        connect_timeout=args.connect_timeout,
        heartbeat_timeout=args.heartbeat_timeout,
    )
    if jax.process_count() == 1:
        return run()
    me = f"process {jax.process_index()} of {jax.process_count()}"
    try:
        return run()
    except (ValueError, OSError) as error:
        _leave(f"{me}: {error}", 2)
    except Exception as error:
        runtime = isinstance(error, jax.errors.JaxRuntimeError)
        if not (runtime and distributed.lost_peer(error)):
            traceback.print_exc()
            _leave(f"{me} failed", 1)
        reason = " ".join(str(error).split())[:300]
        _leave(
            f"{me}: another process of the run was lost ({reason}); start the same "
            "command on every host: it goes on from what was saved",
            1,
        )


def _leave(message: str, code: int):
    print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # leaving politely waits for processes that may be gone
