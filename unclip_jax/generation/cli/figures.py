"""Modes that draw one figure: the paper's, from this model.

Each takes (model, options, progress) and returns a Figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.generation.cli import listings
from unclip_jax.images import find_images, fit, read_image

LISTS = ("thetas", "dims", "scales")  # options with a value per image of a row
COUNTS = ("frames", "samples")  # options that say how many images a row has


class Figure(NamedTuple):
    """Pictures row after row.

    Attributes:
      images: uint8 (N, H, W, 3).
      captions: N.
      columns: pictures per row.
      lines: what is printed besides.
    """

    images: np.ndarray
    captions: list[str]
    columns: int
    lines: Sequence[str] = ()


def count_images(options: Mapping[str, Any]) -> int:
    """How many images the figure of these options has at least."""
    if "image" in options:
        rows = len(find_images(options["image"]))
    else:
        rows = len(listings.prompts(options))
    lists = [options[key].count(",") + 1 for key in LISTS if key in options]
    return rows * max([1, *lists, *(options.get(key, 1) for key in COUNTS)])


def interpolate(model, options, progress) -> Figure:
    """Figures 4: rows from each picture to the next one given."""
    files, images = _read_images(options)
    if len(files) < 2:
        raise UsageError(f"--mode=interpolate needs two pictures, got {len(files)}")
    paint = listings.decoder_options(options)
    drawn = model.interpolate(
        images[:-1],
        images[1:],
        frames=options["frames"],
        noise=options["noise"],
        corrections=options["corrections"],
        seed=options["seed"],
        progress=progress,
        **listings.hints(model, options, len(images) - 1),
        **paint,
    )
    row = [f"{t:.2f}" for t in np.linspace(0, 1, options["frames"])]
    return _rows(drawn, row * len(drawn))


def text_diff(model, options, progress) -> Figure:
    """Figure 5: the picture, then theta after theta."""
    files, images = _read_images(options)
    thetas = listings.parse_numbers("thetas", options["thetas"])
    drawn = model.text_diff(
        images,
        options["source"],
        options["target"],
        thetas,
        corrections=options["corrections"],
        progress=progress,
        **listings.hints(model, options, len(images)),
        **listings.decoder_options(options),
    )
    row = [f"{options['target']}, {theta:g}" for theta in thetas]
    return _beside(files, images, drawn, row)


def pca(model, options, progress) -> Figure:
    """Figure 7: the picture, then reconstructions from more and more components."""
    files, images = _read_images(options)
    dims = listings.parse_numbers("dims", options["dims"], int)
    drawn = model.pca_reconstructions(
        images,
        dims,
        seed=options["seed"],
        progress=progress,
        **listings.decoder_options(options),
    )
    return _beside(files, images, drawn, [f"{n} components" for n in dims])


def zero_shot(model, options, progress) -> Figure:
    """Pictures with the probabilities of the labels, all of which are printed."""
    files, images = _read_images(options)
    odds, labels = _odds(model, options, images), options["label"]
    fitted = model.fit_for_clip(images)
    pairs = [*zip(files, odds, strict=True)]
    captions = [f"{file.name}: {_ranked(labels, row, 4)}" for file, row in pairs]
    lines = [f"{file}: {_ranked(labels, row)}" for file, row in pairs]
    return Figure(fitted, captions, min(len(images), 6), lines)


def typographic(model, options, progress) -> Figure:
    """Figure 6: attacked pictures and their labels, beside variations."""
    files, images = _read_images(options)
    samples, odds = options["samples"], _odds(model, options, images)
    drawn = model.variations(
        listings.repeat(images, samples),
        options["seed"],
        progress=progress,
        **listings.decoder_options(options),
    )
    drawn = drawn.reshape(len(files), samples, *drawn.shape[1:])
    figure = _beside(files, images, drawn, ["variation"] * samples)
    step = figure.columns
    figure.captions[::step] = [_ranked(options["label"], row, 4) for row in odds]
    return figure


def conditioning(model, options, progress) -> Figure:
    """Figure 8: what the same decoder draws from three kinds of conditions.

    The caption alone; the caption and its text embedding in place of an image
    embedding; the caption and an image embedding from the prior.
    """
    prompts, seed = listings.prompts(options), options["seed"]
    paint = listings.decoder_options(options)
    text = model.encode_text(prompts, progress=False)
    with_prior = model.text2image(
        prompts, seed, progress=progress, **listings.text_options(options)
    )
    rows = [
        model.decode(None, prompts, seed, progress=progress, **paint),
        model.decode(text, prompts, seed, progress=progress, **paint),
        with_prior,
    ]
    kinds = ("caption", "text embedding", "prior")
    captions = [f"{kind}: {prompt}" for kind in kinds for prompt in prompts]
    return Figure(np.concatenate(rows), captions, len(prompts))


def guidance(model, options, progress) -> Figure:
    """One row per prompt, the same noise at rising guidance of the decoder."""
    prompts = listings.prompts(options)
    scales = listings.parse_numbers("scales", options["scales"])
    common = listings.text_options(options)
    drawn = [
        model.text2image(
            prompts,
            options["seed"],
            decoder_guidance=scale,
            progress=progress,
            **common,
        )
        for scale in scales
    ]
    row = [f"guidance {scale:g}" for scale in scales]
    return _rows(np.stack(drawn, axis=1), row * len(prompts))


def _read_images(options):
    """Reads the input files: (their paths, uint8 (H, W, 3) each)."""
    files = find_images(options["image"])
    return files, [read_image(file) for file in files]


def _odds(model, options, images):
    """Probabilities (N, labels)."""
    fitted = model.fit_for_clip(images)
    return model.zero_shot(fitted, options["label"], options["template"])


def _ranked(labels, odds, most=None):
    """Labels and their probabilities as text, the likeliest first."""
    order = np.argsort(-odds)[:most]
    return ", ".join(f"{labels[i]} {odds[i]:.1%}" for i in order)


def _rows(drawn, captions):
    """A Figure of (N, K, H, W, 3)."""
    return Figure(drawn.reshape(-1, *drawn.shape[2:]), captions, drawn.shape[1])


def _beside(files, images, drawn, row):
    """A Figure of rows (N, K, H, W, 3), each after the picture it was made from."""
    inputs = np.stack([fit(image, drawn.shape[2:4]) for image in images])
    captions = [text for file in files for text in (file.name, *row)]
    return _rows(np.concatenate([inputs[:, None], drawn], axis=1), captions)
