"""How long text-to-picture takes beside diffusers' UnCLIPPipeline.

    (. launch/env.sh && python -m tests.generation.benchmark)

Makes a pipeline of diffusers with random weights in a temporary folder, which both
libraries then read: prior, decoder at 32 pixels, super-resolution to 128, shaped like
Karlo. Both draw the same prompts with the same guidance and steps (25 + 25 + 7), in
turns in one process; the first picture of each, with its compilation, does not count.
Prints the medians and, of turns side by side, the ratio, in time and in CPU time. On a
machine that does other work too, compare one core with one:

    (. launch/env.sh && OMP_NUM_THREADS=1 taskset -c 0 python -m ...)
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import numpy as np

from tests.parity.unclip_pipeline import Sizes, make_pipeline
from unclip_jax.generation import UnCLIP
from unclip_jax.tokenizer import train_tokenizer

MEDIUM = Sizes(
    embed_dim=256,
    length=77,
    depth=6,
    heads=4,
    image=32,
    large=128,
    channels=(64, 128, 192, 256),
    large_channels=(32, 64, 96, 128),
    res_blocks=1,
    head_channels=64,
    cross=256,
)
PROMPTS = (
    "a red heart on a white background",
    "two green trees, old",
    "a blue cat",
    "an orange house",
)
PRIOR_GUIDANCE, DECODER_GUIDANCE = 4.0, 8.0


def draw_theirs(pipeline, prompts) -> np.ndarray:
    """float32 (N, H, W, 3) in [0, 1]."""
    import torch

    with torch.no_grad():
        return pipeline(
            list(prompts),
            prior_guidance_scale=PRIOR_GUIDANCE,
            decoder_guidance_scale=DECODER_GUIDANCE,
            output_type="np",
        ).images


def draw_ours(model, prompts) -> np.ndarray:
    """uint8 (N, H, W, 3)."""
    return model.text2image(
        list(prompts),
        prior_guidance=PRIOR_GUIDANCE,
        decoder_guidance=DECODER_GUIDANCE,
        num_candidates=1,
    )


def channels_last(pipeline):
    """The convolutional networks in torch's other memory layout."""
    import torch

    for name in ("decoder", "super_res_first", "super_res_last"):
        getattr(pipeline, name).to(memory_format=torch.channels_last)


def clock(draw, what, prompts) -> tuple[float, float]:
    """Seconds and CPU seconds of drawing, and a look at whether it drew anything."""
    start, work = time.perf_counter(), time.process_time()
    images = draw(what, prompts)
    seconds = time.perf_counter() - start, time.process_time() - work
    if len(images) != len(prompts) or not np.ptp(images) or np.isnan(images).any():
        raise RuntimeError(f"{draw} drew no pictures")
    return seconds


def report(title: str, theirs, ours, count: int) -> None:
    """Medians per picture and the ratio turn by turn, of time and of CPU time."""
    print(f"{title} against unclip_jax, a picture:")
    for i, kind in enumerate(("time", "CPU time")):
        a, b = ([turn[i] for turn in turns] for turns in (theirs, ours))
        ratios = [y / x for x, y in zip(a, b, strict=True)]
        print(
            f"  {kind}: {statistics.median(a) / count:.2f} s and "
            f"{statistics.median(b) / count:.2f} s, ratio "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def parameters(pipeline) -> int:
    names = ("prior", "decoder", "super_res_first", "super_res_last")
    parts = [getattr(pipeline, name) for name in names]
    return sum(p.numel() for part in parts for p in part.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="of each library")
    parser.add_argument("--batch", type=int, default=1, help="pictures drawn together")
    options = parser.parse_args()
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(options.batch)]
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        train_tokenizer(PROMPTS * 5, root / "tokenizer", vocab_size=560)
        pipeline = make_pipeline(root / "tokenizer", MEDIUM)
        pipeline.save_pretrained(root / "unclip")
        pipeline.set_progress_bar_config(disable=True)
        model = UnCLIP.load(root / "unclip", batch_size=options.batch)
    theirs, _ = clock(draw_theirs, pipeline, prompts)
    ours, _ = clock(draw_ours, model, prompts)
    print(
        f"{parameters(pipeline) / 1e6:.0f}M parameters, {options.batch} at a time; "
        f"first call {theirs:.1f} s of diffusers, {ours:.1f} s of unclip_jax",
        flush=True,
    )
    for title in ("diffusers", "diffusers, channels_last"):
        if title != "diffusers":
            channels_last(pipeline)
            clock(draw_theirs, pipeline, prompts)
        theirs, ours = [], []
        for _ in range(options.turns):
            theirs.append(clock(draw_theirs, pipeline, prompts))
            ours.append(clock(draw_ours, model, prompts))
        report(title, theirs, ours, options.batch)


if __name__ == "__main__":
    main()
