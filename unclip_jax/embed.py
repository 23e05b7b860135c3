"""Runs a frozen CLIP over a data source and writes records.

    python -m unclip_jax.embed --config=configs/icons/embed.py \\
        --workdir=runs/icons/records

Run the same command again to continue after an interruption. With --inspect nothing is
embedded: the data, or the records that are there, are counted and shown. On several
hosts start it on each of them, with a workdir that all of them see: they share the
work, file by file.
"""

from unclip_jax import config as config_lib

FLAGS = {
    "inspect": (False, "report on the data and draw a contact sheet; embed nothing"),
}


def main(args):
    """Embeds the data of args.config, or reports on it."""
    if args.inspect:
        from unclip_jax.embedding.inspection import inspect

        inspect(args.config, args.workdir)
        return
    from unclip_jax.embedding.runner import embed
    from unclip_jax.training.checkpoint import load_run

    embed(args.config, args.workdir, load_run)


if __name__ == "__main__":
    joins = lambda args: not args.inspect  # noqa: E731
    config_lib.run(main, extra_flags=FLAGS, distributed=joins)
