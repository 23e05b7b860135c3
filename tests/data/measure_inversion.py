"""Measures how exactly inversion by the tiny decoder of the paper's kind is undone.

    python -m tests.data.measure_inversion

Prints the mean PSNR of 16 held-out pictures, by steps and corrections; docs/sampling.md
has the numbers.
"""

import argparse

import numpy as np

from tests.data.make_epsilon_export import CLASSES, OUT
from unclip_jax.data.sources import make_source
from unclip_jax.generation import UnCLIP, sampling

HELD_OUT = {"source": "icons", "split": "held_out", "image_size": 8, **CLASSES}


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) dB of uint8 pictures; equal ones have that of an error of 0.03 levels."""
    squares = (a.astype(np.float64) - b) ** 2
    return 10 * np.log10(255**2 / np.maximum(squares.mean((1, 2, 3)), 1e-3))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(OUT))
    parser.add_argument("--min_signal", type=float, default=sampling.MIN_SIGNAL)
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50, 250])
    parser.add_argument("--corrections", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    sampling.MIN_SIGNAL = options.min_signal
    model = UnCLIP.load(options.model, batch_size=16)
    source = make_source(HELD_OUT)
    rows = np.linspace(0, len(source) - 1, 16).astype(int)
    images = np.stack([source[i]["image"] for i in rows])
    for steps in options.steps:
        for corrections in options.corrections:
            back = model.reconstruct(images, steps=steps, corrections=corrections)
            print(
                f"{steps} steps, {corrections} corrections: "
                f"{psnr(back, images).mean():.1f} dB, "
                f"{((back == 0) | (back == 255)).mean():.1%} at 0 or 255",
                flush=True,
            )


if __name__ == "__main__":
    main()
