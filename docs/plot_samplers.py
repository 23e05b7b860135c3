"""Draws docs/samplers.png: how far few steps are from many, on a trained decoder.

    pip install matplotlib
    python -m docs.plot_samplers --model=exports/icons \
        --records=runs/icons/records/validation

Decodes one embedding per caption from the same noise by each ODE solver, and prints and
plots the mean distance from the pictures of 250 DDIM steps over calls of the model.
"""

import argparse
import pathlib

import numpy as np

from unclip_jax.data.records import RecordReader
from unclip_jax.generation import UnCLIP

ROOT = pathlib.Path(__file__).parents[1]
CALLS = (5, 9, 15, 25, 49, 99)
# name -> (label, calls -> steps)
SOLVERS = {
    "ddim": ("DDIM", lambda calls: calls),
    "dpmpp_2m": ("DPM-Solver++(2M)", lambda calls: calls),
    "heun": ("Heun", lambda calls: (calls + 1) // 2),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="exports/icons")
    parser.add_argument("--records", default="runs/icons/records/validation")
    parser.add_argument("--captions", type=int, default=12)
    parser.add_argument("--prior_guidance", type=float, default=2.0)
    parser.add_argument("--decoder_guidance", type=float, default=3.0)
    parser.add_argument("--out", default=ROOT / "docs" / "samplers.png")
    options = parser.parse_args()
    import matplotlib.pyplot as plt

    model = UnCLIP.load(options.model, batch_size=options.captions)
    reader = RecordReader(options.records)
    captions = [reader[i]["caption"] for i in range(options.captions)]
    z = model.sample_embeddings(captions, guidance=options.prior_guidance)

    def decode(sampler, steps):
        guidance = options.decoder_guidance
        drawn = model.decode(
            z, captions, guidance=guidance, steps=steps, sampler=sampler
        )
        return drawn.astype(np.float64)

    many = decode("ddim", 250)
    figure, axis = plt.subplots(figsize=(5, 3.4))
    for name, (label, steps_of) in SOLVERS.items():
        found = []
        for calls in CALLS:
            found.append(np.abs(decode(name, steps_of(calls)) - many).mean())
            print(f"{label}, {calls} calls: {found[-1]:.2f} of 255", flush=True)
        axis.loglog(CALLS, found, marker="o", markersize=3, label=label)
    axis.set(xlabel="calls of the model", ylabel="distance, grey levels of 255")
    axis.set_xticks(CALLS, CALLS)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
