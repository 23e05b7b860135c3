"""Shows the curves of training runs as one HTML page.

    python -m unclip_jax.report --run=runs/icons/decoder
    python -m unclip_jax.report --run=runs/icons/clip --run=runs/icons/prior \\
        --run=runs/icons/decoder --out=runs/icons/report.html

Loss, evaluators and images/s, the newest preview, and all else that the run logged. The
page needs nothing else; a run may still be going on.
"""

import pathlib

from unclip_jax import command_line
from unclip_jax.errors import UsageError

FLAGS = {
    "run": ([], "folder of a run; may be repeated"),
    "out": ("", "the page (default report.html in the first run)"),
    "image": ([], "an image to show above the curves; may be repeated"),
    "link": ([], "a file to link; may be repeated"),
}


def main(args):
    """Writes the page."""
    from unclip_jax.training.report import report

    if not args.run:
        raise UsageError("--run is required: folder of a run")
    out = args.out or str(pathlib.Path(args.run[0]) / "report.html")
    report(args.run, out, args.image, args.link)
    print(f"written: {out}")


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS)
