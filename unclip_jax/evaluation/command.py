"""What `python -m unclip_jax.evaluate` does: join the processes, evaluate."""

import jax

from unclip_jax.evaluation.runner import evaluate
from unclip_jax.parallel import processes


def run(args):
    """Evaluates args.config in args.workdir; the flags are unclip_jax.evaluate's."""
    processes.initialize(
        args.distributed, args.coordinator, args.num_processes, args.process_id
    )
    evaluate(
        args.config,
        args.workdir,
        images=args.images,
        make_reference=args.make_reference,
        # one voice: every process has the same numbers
        log=None if jax.process_index() == 0 else lambda line: None,
    )
