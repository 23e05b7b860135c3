"""What `python -m unclip_jax.embed` does: join the processes, embed."""

from unclip_jax.embedding.frozen_clip import LoadRun
from unclip_jax.embedding.runner import embed
from unclip_jax.parallel.together import together


def run(args, load_run: LoadRun):
    """Embeds what args.config names into args.workdir; the flags are embed's."""
    together(lambda: embed(args.config, args.workdir, load_run), args)
