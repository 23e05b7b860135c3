"""What `python -m unclip_jax.evaluate` does: join the processes, evaluate."""

import jax

from unclip_jax.evaluation.runner import evaluate
from unclip_jax.parallel.together import together


def run(args):
    """Evaluates args.config in args.workdir; the flags are unclip_jax.evaluate's."""

    def work():
        evaluate(
            args.config,
            args.workdir,
            images=args.images,
            make_reference=args.make_reference,
            # one voice: every process has the same numbers
            log=None if jax.process_index() == 0 else lambda line: None,
        )

    together(work, args)
