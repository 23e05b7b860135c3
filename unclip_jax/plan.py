"""Checks whether a config fits a TPU slice, without a TPU.

    python -m unclip_jax.plan --config=configs/paper/decoder.py --topology=v5p:4x4x8
    python -m unclip_jax.plan --config=configs/paper/prior.py --topology=v5e:8x8 \\
        --search

Needs requirements-tpu.txt (the compiler), but no TPU and no data: what a run would read
from its records, such as embed_dim, is the paper's value unless --assume gives another.
"""

from unclip_jax import command_line
from unclip_jax.train import defaults

FLAGS = {
    "topology": (command_line.REQUIRED, "v4, v5e, v5p or v6e and a shape: v5p:4x4x8"),
    "assume": (
        [],
        "NAME=NUMBER: a property of the data, e.g. embed_dim=768; may be repeated",
    ),
    "thorough": (False, "compile exactly what a run does: up to an hour for a UNet"),
    "verbose": (False, "list every array of the state, not every kind"),
    "search": (False, "try meshes, rematerialization and micro-batches; best first"),
}


def main(args):
    """Prints the plan of args.config on args.topology."""
    from unclip_jax.planning.search import command

    command(args)


if __name__ == "__main__":
    command_line.run(main, defaults=defaults, workdir=False, extra_flags=FLAGS)
