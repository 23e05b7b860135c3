"""What `python -m unclip_jax.sample` does: prompts or pictures in, PNG files out."""

import json
import pathlib
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

import unclip_jax
from unclip_jax.generation.grids import caption_grid, save_png
from unclip_jax.generation.images import read_image
from unclip_jax.generation.progress import ProgressLine
from unclip_jax.generation.unclip import UnCLIP

MODES = ("text2image", "variations")


def sample(args: types.SimpleNamespace) -> None:
    """Draws pictures and writes them.

    `args` has the attributes of unclip_jax.sample.FLAGS. `out` ending in .png is one
    file: the picture itself if there is one, else a captioned grid. Any other `out` is
    a folder of numbered pictures and their grid.png. Every file's text entries hold
    the prompt, the seed and the settings.

    Raises:
      ValueError, FileNotFoundError: what was wrong with the arguments, before any
        model is loaded where possible.
    """
    if args.mode not in MODES:
        raise ValueError(f"--mode {args.mode!r}: expected one of {', '.join(MODES)}")
    if args.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {args.samples}")
    out = pathlib.Path(args.out)
    if out.suffix and out.suffix.lower() != ".png":
        raise ValueError(f"--out {args.out!r} must be a .png file or a folder")
    draw = {"text2image": _text2image, "variations": _variations}[args.mode]
    captions, images, settings = draw(args)
    settings = {"mode": args.mode, "model": str(args.model), **settings}
    write(out, images, captions, args.seed, settings)
    print(f"{len(images)} pictures in {out}")


def read_prompts(prompts: Sequence[str], file: str | None) -> list[str]:
    """The given prompts, then the lines of the file that are not blank.

    Raises FileNotFoundError, or ValueError when there are none.
    """
    prompts = list(prompts or [])
    if file:
        if not pathlib.Path(file).is_file():
            raise FileNotFoundError(f"--prompts_file {file!r} does not exist")
        lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError('no prompts: give --prompt="..." or --prompts_file=FILE')
    return prompts


def write(
    out: pathlib.Path,
    images: np.ndarray,
    captions: Sequence[str],
    seed: int,
    settings: dict[str, Any],
) -> None:
    """Writes uint8 (N, H, W, 3) as `sample` says; picture i is number i of the seed."""
    shared = {
        "seed": seed,
        "settings": json.dumps(settings, sort_keys=True),
        "software": f"unclip_jax {unclip_jax.__version__}",
    }
    single = [
        {"prompt": caption, "index": i, **shared} for i, caption in enumerate(captions)
    ]
    together = {"prompt": "\n".join(captions), **shared}
    if out.suffix.lower() == ".png":
        if len(images) == 1:
            save_png(out, images[0], single[0])
        else:
            save_png(out, caption_grid(images, captions), together)
        return
    for i, image in enumerate(images):
        save_png(out / f"{i:06d}.png", image, single[i])
    save_png(out / "grid.png", caption_grid(images, captions), together)


def _text2image(args):
    captions = _repeat(read_prompts(args.prompt, args.prompts_file), args.samples)
    settings = {
        name: getattr(args, name)
        for name in (
            "prior_guidance",
            "decoder_guidance",
            "num_candidates",
            "prior_steps",
            "decoder_steps",
            "prior_sampler",
            "decoder_sampler",
            "eta",
            "prior",
            "temperature",
            "top_k",
            "top_p",
            "dot_quantile",
        )
    }
    settings["eta"] = _eta(args, 0.0)
    model = _load(args)
    progress = ProgressLine("drawing")
    images = model.text2image(captions, args.seed, **settings, progress=progress)
    return captions, images, settings


def _variations(args):
    if not args.image:
        raise ValueError("--mode=variations needs --image=FILE (it may be repeated)")
    model = _load(args)
    files = _repeat(args.image, args.samples)
    size = model.clip_image_size
    images = [read_image(file, size) for file in files]
    settings = {
        "eta": _eta(args, 1.0),
        "guidance": args.decoder_guidance,
        "steps": args.decoder_steps,
    }
    progress = ProgressLine("drawing")
    drawn = model.variations(images, args.seed, **settings, progress=progress)
    return [pathlib.Path(file).name for file in files], drawn, settings


def _load(args):
    return UnCLIP.load(args.model, dtype=args.dtype, batch_size=args.batch_size)


def _eta(args, default):
    return default if args.eta < 0 else args.eta


def _repeat(values, times):
    return [value for value in values for _ in range(times)]
