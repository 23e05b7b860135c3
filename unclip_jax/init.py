"""Writes configs that train all stages on your own images, and says what to expect.

    python -m unclip_jax.init --data=data/mine --name=mine --minutes=60

Reads a folder of images with captions, tars (WebDataset, img2dataset) or parquet files,
see docs/data.md. Sizes, widths and steps fit the data, this machine's devices and the
minutes. The configs are in runs/NAME/configs, and everything that they make is in
runs/NAME and exports/NAME. `make own DATA=data/mine NAME=mine` does all of it.
"""

from unclip_jax import command_line

FLAGS = {
    "data": (command_line.REQUIRED, "folder of images with captions, tars or parquets"),
    "name": (command_line.REQUIRED, "of the folders runs/NAME and exports/NAME"),
    "minutes": (60.0, "that training and all else may take on this machine"),
    "overwrite": (False, "write the configs anew, though there are some"),
}


def main(args):
    """Writes the configs."""
    from unclip_jax.planning.own_run import init

    init(args)


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS)
