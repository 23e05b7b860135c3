"""Modes that draw lists: picture i depends on (seed, i) and its own input only."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.files import split_lines
from unclip_jax.generation import checks
from unclip_jax.generation.options import (
    OPTIONS,
    DecoderOptions,
    PriorOptions,
    defaults,
    select,
)
from unclip_jax.images import find_images, fit, read_image, read_mask


def prompts(options: Mapping[str, Any]) -> list[str]:
    """The prompts given, then the file's lines that are not blank, `samples` each.

    Raises FileNotFoundError, or UsageError when there are none.
    """
    captions, file = list(options["prompt"]), options.get("prompts_file")
    if file:
        if not pathlib.Path(file).is_file():
            raise FileNotFoundError(f"--prompts_file {file!r} does not exist")
        try:  # a byte order mark is no part of the first prompt
            text = pathlib.Path(file).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(f"--prompts_file {file!r} is not UTF-8: {error}") from None
        captions += [line.strip() for line in split_lines(text) if line.strip()]
    if not captions:
        raise UsageError('no prompts: give --prompt="..." or --prompts_file=FILE')
    return repeat(captions, options.get("samples", 1))


def names(options: Mapping[str, Any]) -> list[str]:
    """The files' names, `samples` each."""
    return [path.name for path in _files(options)]


def text2image(model, options, captions, rows: slice, progress) -> np.ndarray:
    """Samples images of the captions."""
    return model.text2image(
        captions[rows],
        options["seed"],
        first=rows.start,
        progress=progress,
        **hints(model, options, len(captions), rows),
        **text_options(options),
    )


def variations(model, options, captions, rows: slice, progress) -> np.ndarray:
    """Samples images with the content of the input images."""
    return model.variations(
        [read_image(file) for file in _files(options)[rows]],
        options["seed"],
        inverted=options["inverted"],
        corrections=options["corrections"],
        first=rows.start,
        progress=progress,
        prompts=_only_prompt(options),
        **hints(model, options, len(captions), rows),
        **decoder_options(options),
    )


def reconstruct(model, options, captions, rows: slice, progress) -> np.ndarray:
    """Inverts images to their latents and decodes these."""
    images = [read_image(file) for file in _files(options)[rows]]
    return model.reconstruct(
        images,
        corrections=options["corrections"],
        progress=progress,
        **hints(model, options, len(captions), rows),
        **decoder_options(options),
    )


def inpaint(model, options, captions, rows: slice, progress) -> np.ndarray:
    """Samples images anew where the mask is white."""
    images = [read_image(file) for file in _files(options)[rows]]
    mask = read_mask(options["mask"], images).astype(np.uint8) * 255
    mask = np.repeat(mask[..., None], 3, axis=-1)
    mask = fit(mask, _sides(model, options)).mean(-1) > 127
    if not mask.any():
        raise UsageError(
            f"--mask {options['mask']!r} has no white in the part that is drawn: "
            "paint white what is to be drawn anew"
        )
    return model.inpaint(
        images,
        mask,
        _only_prompt(options),
        options["seed"],
        prior=select(PriorOptions, options),
        first=rows.start,
        progress=progress,
        **hints(model, options, len(captions), rows),
        **decoder_options(options),
    )


def img2img(model, options, captions, rows: slice, progress) -> np.ndarray:
    """Draws over images, at a strength."""
    return _edit(model, model.img2img, options, captions, rows, progress)


def emb2emb(model, options, captions, rows: slice, progress) -> np.ndarray:
    """Samples images of embeddings that the prior has changed."""
    if not options["prompt"]:
        raise UsageError("--mode=emb2emb needs --prompt, what to change them to")
    return _edit(model, model.emb2emb, options, captions, rows, progress)


def _edit(model, method, options, captions, rows, progress):
    return method(
        [read_image(file) for file in _files(options)[rows]],
        _only_prompt(options),
        options["strength"],
        options["seed"],
        prior=select(PriorOptions, options),
        first=rows.start,
        progress=progress,
        **hints(model, options, len(captions), rows),
        **decoder_options(options),
    )


def hints(
    model, options: Mapping[str, Any], count: int, rows: slice = slice(None)
) -> dict[str, np.ndarray]:
    """The argument `hint` of the `rows` that are drawn, if --hint is given.

    Raises UsageError for several that are not one for each of the `count`.
    """
    if not options["hint"]:
        return {}
    files = repeat(find_images(options["hint"]), options.get("samples", 1))
    if len(set(files)) == 1:
        files = files[:1] * count
    if len(files) != count:
        raise UsageError(
            f"--hint names {len(set(files))} images: give one for all, or one per "
            "prompt or image"
        )
    sides = _sides(model, options)
    return {"hint": np.stack([fit(read_image(file), sides) for file in files[rows]])}


def _sides(model, options):
    return model.draw_sides(options["height"], options["width"])


def _only_prompt(options):
    prompts = options["prompt"]
    if len(prompts) > 1:
        raise UsageError(f"this mode takes one --prompt, got {len(prompts)}")
    return prompts[0] if prompts else None


def text_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of UnCLIP.text2image, of those flags that a mode has."""
    values = {flag: options[flag] for flag in defaults(*OPTIONS) if flag in options}
    return values | {"decoder_guidance_interval": _interval(options)}


def decoder_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same of the methods that only decode."""
    return select(DecoderOptions, options) | {"guidance_interval": _interval(options)}


def drawn_with(model, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How each part that takes part in drawing does, by these flags and the model."""
    if "decoder_steps" not in options:
        return {}
    parts = ["decoder", "upsampler"]
    if "prior_steps" in options and (options["prompt"] or options.get("prompts_file")):
        parts.append("prior")
    values = {"decoder_sampler": "ddim", **text_options(options)}
    settings = model.settings(parts, **values)
    if "decoder_guidance" not in options:  # the figure shows several
        del settings["decoder"]["guidance"]
    return settings


def parse_numbers(flag: str, text: str, kind: type = float) -> list:
    """Finite numbers between commas, of the type `kind`.

    Raises UsageError, naming the flag.
    """
    try:
        parsed = [kind(word) for word in text.split(",")]
        return [kind(checks.number(flag, number)) for number in parsed]
    except ValueError:
        whole = "whole " if kind is int else ""
        raise UsageError(
            f"--{flag} {text!r}: expected {whole}numbers with commas between"
        ) from None


def _interval(options):
    text = options["decoder_guidance_interval"]
    if text is None:
        return None
    return parse_numbers("decoder_guidance_interval", text, int)


def repeat(values: Sequence, times: int) -> list:
    """Each value `times` times, in a row."""
    return [value for value in values for _ in range(times)]


def _files(options):
    return repeat(find_images(options["image"]), options.get("samples", 1))
