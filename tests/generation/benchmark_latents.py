"""How long Kandinsky's decoder takes beside diffusers' KandinskyV22Pipeline.

    (. launch/env.sh && python -m tests.generation.benchmark_latents --size=medium)

Makes both pipelines with random weights in a temporary folder, which both libraries
then read, and draws the same embeddings with the same guidance and steps of DDPM,
autoencoder included, in turns in one process; the first images of each, with their
compilation, do not count. Prints what benchmark.py prints.
"""

import argparse
import functools
import pathlib
import tempfile

import numpy as np

from tests.generation.benchmark import PROMPTS, clock, report
from tests.parity import kandinsky_pipeline as kandinsky
from unclip_jax.generation import UnCLIP
from unclip_jax.tokenizer import train_tokenizer

GUIDANCE = 4.0
DOWN, UP = "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"
# name -> (what differs from the tiny UNet, the autoencoder's factor)
SIZES = {
    "tiny": ({}, kandinsky.FACTOR),
    "medium": (
        {
            "sample_size": 32,
            "block_out_channels": (96, 192, 288, 384),
            "layers_per_block": 2,
            "down_block_types": ("ResnetDownsampleBlock2D", DOWN, DOWN, DOWN),
            "up_block_types": (UP, UP, UP, "ResnetUpsampleBlock2D"),
            "attention_head_dim": 32,
            "cross_attention_dim": 192,
        },
        8,
    ),
}


def make_pipeline(root: pathlib.Path, size: str):
    """The decoder's pipeline; it and the prior's are saved under `root`."""
    import diffusers

    train_tokenizer(PROMPTS * 5, root / "tokenizer", vocab_size=560)
    changes, factor = SIZES[size]
    pipeline = diffusers.KandinskyV22Pipeline(
        unet=kandinsky.make_unet(**changes),
        scheduler=diffusers.DDPMScheduler(**kandinsky.SCHEDULER),
        movq=kandinsky.make_movq(factor),
    )
    pipeline.set_progress_bar_config(disable=True)
    kandinsky.make_prior_pipeline(root / "tokenizer").save_pretrained(root / "prior")
    pipeline.save_pretrained(root / "decoder")
    return pipeline


def draw_theirs(pipeline, embeddings, steps: int) -> np.ndarray:
    """float32 (N, H, W, 3) in [0, 1]."""
    import torch

    side = pipeline.unet.config.sample_size * pipeline.movq_scale_factor
    z = torch.from_numpy(embeddings)
    with torch.no_grad():
        return pipeline(
            image_embeds=z,
            negative_image_embeds=torch.zeros_like(z),
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            output_type="np",
        ).images


def draw_ours(model, embeddings, steps: int) -> np.ndarray:
    """uint8 (N, H, W, 3)."""
    return model.decode(embeddings, steps=steps, guidance=GUIDANCE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--steps", type=int, default=20, help="of DDPM")
    parser.add_argument("--turns", type=int, default=5, help="of each library")
    parser.add_argument("--batch", type=int, default=1, help="images drawn together")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        pipeline = make_pipeline(root, options.size)
        folders = [root / "prior", root / "decoder"]
        model = UnCLIP.load(folders, batch_size=options.batch)
    shape = options.batch, kandinsky.SIZES.embed_dim
    embeddings = np.random.default_rng(0).standard_normal(shape, np.float32)
    theirs = functools.partial(draw_theirs, steps=options.steps)
    ours = functools.partial(draw_ours, steps=options.steps)
    first = [clock(theirs, pipeline, embeddings), clock(ours, model, embeddings)]
    count = sum(p.numel() for p in pipeline.unet.parameters())
    print(
        f"{options.size}: {count / 1e6:.1f}M parameters, {options.batch} at a time, "
        f"{options.steps} steps; first call {first[0][0]:.1f} s of diffusers, "
        f"{first[1][0]:.1f} s of unclip_jax",
        flush=True,
    )
    turns = [
        (clock(theirs, pipeline, embeddings), clock(ours, model, embeddings))
        for _ in range(options.turns)
    ]
    report("diffusers", *zip(*turns, strict=True), options.batch)


if __name__ == "__main__":
    main()
