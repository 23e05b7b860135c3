"""Runs a frozen CLIP over a data source and writes records.

    python -m unclip_jax.embed --config=configs/icons/embed.py \\
        --workdir=runs/icons/records

Run the same command again to continue after an interruption. With --inspect nothing is
embedded: the data, or the records that are there, are counted and shown. On several
hosts start it on each of them, with a workdir that all of them see: they share the
work, file by file.
"""

from unclip_jax import command_line

FLAGS = {
    "inspect": (False, "report on the data and draw a contact sheet; embed nothing"),
}


def defaults(config):
    """What EmbedConfig and the source have for keys that `config` leaves out."""
    from unclip_jax.embedding.config import config_defaults

    return config_defaults(config)


def main(args):
    """Embeds the data of args.config, or reports on it."""
    from unclip_jax.embedding.config import read_config

    config = read_config(args.config)
    if args.inspect:
        from unclip_jax.embedding.inspection import inspect

        inspect(config, args.workdir)
        return
    from unclip_jax.embedding.runner import embed
    from unclip_jax.training.checkpoint import load_run

    embed(config, args.workdir, load_run)


if __name__ == "__main__":
    joins = lambda args: not args.inspect  # noqa: E731
    command_line.run(main, defaults=defaults, extra_flags=FLAGS, distributed=joins)
