"""Serves a web page to try a model: a tab for each thing that it can do.

    python -m unclip_jax.app --model=exports/icons

Needs requirements-app.txt. Only this machine can open it, unless --host says otherwise;
requests for other names and from other sites are refused.
"""

from unclip_jax import command_line

FLAGS = {
    "model": (command_line.REQUIRED, "folder of an export, or of a diffusers unCLIP"),
    "host": ("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in"),
    "port": (7860, "port to listen on"),
    "batch_size": (16, "images drawn at a time"),
    "dtype": ("float32", "of the computation: float32 or bfloat16"),
}


def main(args):
    """Serves the page until Ctrl-C."""
    from unclip_jax.generation.page import serve

    serve(args)


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS)
