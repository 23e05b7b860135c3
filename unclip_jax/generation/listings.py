"""Modes that draw lists: picture i depends on (seed, i) and its own input only."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.generation.images import find_pictures, fit, read_image

_PRIOR = ("prior", "temperature", "top_k", "top_p", "dot_quantile", "num_candidates")


def prompts(options: Mapping[str, Any]) -> list[str]:
    """The prompts given, then the file's lines that are not blank, `samples` each.

    Raises FileNotFoundError, or ValueError when there are none.
    """
    found, file = list(options["prompt"]), options.get("prompts_file")
    if file:
        if not pathlib.Path(file).is_file():
            raise FileNotFoundError(f"--prompts_file {file!r} does not exist")
        try:  # a byte order mark is no part of the first prompt
            text = pathlib.Path(file).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"--prompts_file {file!r} is not UTF-8: {error}") from None
        found += [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ValueError('no prompts: give --prompt="..." or --prompts_file=FILE')
    return repeat(found, options.get("samples", 1))


def names(options: Mapping[str, Any]) -> list[str]:
    """The files' names, `samples` each."""
    return [path.name for path in _files(options)]


def text2image(model, options, captions, rows: slice) -> np.ndarray:
    return model.text2image(
        captions[rows], options["seed"], first=rows.start, **text_options(options)
    )


def variations(model, options, captions, rows: slice) -> np.ndarray:
    return model.variations(
        [read_image(file) for file in _files(options)[rows]],
        options["seed"],
        eta=options["eta"],
        inverted=options["inverted"],
        first=rows.start,
        **decoder_options(options),
    )


def reconstruct(model, options, captions, rows: slice) -> np.ndarray:
    pictures = [read_image(file) for file in _files(options)[rows]]
    return model.reconstruct(pictures, **decoder_options(options))


def inpaint(model, options, captions, rows: slice) -> np.ndarray:
    pictures = [read_image(file) for file in _files(options)[rows]]
    given = options["prompt"]
    if len(given) > 1:
        raise ValueError(f"--mode=inpaint takes one --prompt, got {len(given)}")
    prior = {k: options[k] for k in _PRIOR} | {
        k: options[f"prior_{k}"] for k in ("guidance", "steps", "sampler")
    }
    return model.inpaint(
        pictures,
        fit(read_image(options["mask"]), model.draw_size).mean(-1) > 127,
        given[0] if given else None,
        options["seed"],
        sampler=options["decoder_sampler"],
        eta=options["eta"],
        prior=prior,
        first=rows.start,
        **decoder_options(options),
    )


def text_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of UnCLIP.text2image, of those flags that a mode has."""
    keys = ("prior_guidance", "prior_steps", "prior_sampler")
    keys += ("decoder_guidance", "decoder_steps", "decoder_sampler", "eta", *_PRIOR)
    keys += ("upsampler_steps",)
    return {key: options[key] for key in keys if key in options}


def decoder_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """`guidance` and `steps` as methods that only decode call them."""
    return {k: options[f"decoder_{k}"] for k in ("guidance", "steps")}


def repeat(values: Sequence, times: int) -> list:
    """Each value `times` times, in a row."""
    return [value for value in values for _ in range(times)]


def _files(options):
    return repeat(find_pictures(options["image"]), options.get("samples", 1))
