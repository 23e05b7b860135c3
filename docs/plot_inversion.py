"""Draws docs/inversion.png: how exactly DDIM inversion gives pictures back.

    pip install matplotlib
    python -m docs.plot_inversion --model=exports/icons \
        --records=runs/icons/records/validation

Inverts pictures of held-out records, and pictures that the model draws of their
captions, without guidance, draws them again with the same steps, and prints and plots
the PSNR of each over steps.
"""

import argparse
import pathlib

import numpy as np

from unclip_jax.data.records import RecordReader
from unclip_jax.generation import UnCLIP

ROOT = pathlib.Path(__file__).parents[1]
STEPS = (10, 25, 50, 100, 250)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) dB of uint8 pictures; equal ones have that of an error of 0.03 levels."""
    squares = (a.astype(np.float64) - b) ** 2
    return 10 * np.log10(255**2 / np.maximum(squares.mean((1, 2, 3)), 1e-3))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="exports/icons")
    parser.add_argument("--records", default="runs/icons/records/validation")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--real_only", action="store_true", help="draw no images")
    parser.add_argument("--out", default=ROOT / "docs" / "inversion.png")
    options = parser.parse_args()
    import matplotlib.pyplot as plt

    model = UnCLIP.load(options.model, batch_size=options.pictures)
    reader = RecordReader(options.records)
    rows = np.linspace(0, len(reader) - 1, options.pictures).astype(int)
    examples = [reader[i] for i in rows]
    real = model.fit_for_decoder([example["image"] for example in examples])
    sets = {"held out": real}
    if not options.real_only:
        captions = [example["caption"] for example in examples]
        if "prior" in model.stack.parts:
            drawn = model.text2image(captions, prior_guidance=2.0, decoder_guidance=3.0)
        else:
            drawn = model.variations(real, guidance=3.0)
        sets = {"drawn by the model": model.fit_for_decoder(drawn), **sets}

    figure, axis = plt.subplots(figsize=(5, 3.4))
    for label, images in sets.items():
        curve = []  # PSNR of each picture, for each number of steps
        for steps in options.steps:
            curve.append(psnr(model.reconstruct(images, steps=steps), images))
            print(
                f"{label}, {steps} steps: {curve[-1].mean():.1f} dB "
                f"({curve[-1].min():.1f} to {curve[-1].max():.1f})",
                flush=True,
            )
        mean, low, high = ([f(v) for v in curve] for f in (np.mean, np.min, np.max))
        axis.semilogx(options.steps, mean, marker="o", markersize=3, label=label)
        axis.fill_between(options.steps, low, high, alpha=0.15)
    axis.set(xlabel="steps of inversion and of drawing", ylabel="PSNR, dB")
    axis.set_xticks(options.steps, options.steps)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
