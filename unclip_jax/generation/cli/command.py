"""What `python -m unclip_jax.sample` does: flags in, pictures out."""

import json
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import jax

import unclip_jax
from unclip_jax.errors import UsageError
from unclip_jax.files import sha256_file
from unclip_jax.generation.cli import figures, listings, modes
from unclip_jax.generation.loading import split_folders
from unclip_jax.generation.picture_folder import PictureFolder
from unclip_jax.generation.unclip import UnCLIP
from unclip_jax.grids import MIN_TILE, caption_grid
from unclip_jax.images import FORMATS, enlarge, read_image, save_image
from unclip_jax.progress import ProgressLine, Within

# Flags that every mode takes; all others are options of modes.
COMMON = ("model", "out", "mode", "seed", "batch_size", "dtype", "format", "columns")
COMMON += ("process", "processes", "overwrite", "scale", "debug", "lora")
GRID_MOST = 100  # pictures of a folder's grid
FILE_MOST = 1000  # of the one that a file is


def sample(args: types.SimpleNamespace) -> None:
    """Draws pictures and writes them.

    `args` has the attributes of unclip_jax.sample.FLAGS. `out` ending in .png or .webp
    is one file: of a list of one, the image itself; else a captioned grid. Any other
    `out` is a folder of numbered pictures, and their grid if they are few. Every file
    holds the prompt, the seed, the settings, how each part drew, and the versions.

    Raises:
      UsageError, FileNotFoundError: what was wrong with the arguments, before any
        model is loaded where possible.
    """
    flags = {
        flag: _steps(value) if flag.endswith("_steps") else value
        for flag, value in vars(args).items()
        if flag not in COMMON and value not in (None, [])
    }
    options = modes.resolve_flags(args.mode, flags)
    _check(args, options)
    settings = {"mode": args.mode, "model": str(args.model), **options}
    if args.lora:
        settings["lora"] = args.lora
    options["seed"] = args.seed
    mode, out = modes.find_mode(args.mode), pathlib.Path(args.out)
    captions = mode.captions(options) if mode.captions else []
    check_out(out, mode.captions is not None, args.overwrite)
    if mode.captions is None:
        if out.suffix:
            _check_grid(out, figures.count_images(options))
        model, settings = _load(args, options, settings)
        figure = mode.draw(model, options, ProgressLine("drawing"))
        images, captions, columns, lines = figure
        print(*lines, sep="\n", end="\n" if lines else "")
    else:
        columns = args.columns
        if not out.suffix:
            return _fill(mode, options, captions, settings, args, out)
        _check_grid(out, len(captions))
        model, settings = _load(args, options, settings)
        rows = slice(0, len(captions))
        images = mode.draw(model, options, captions, rows, ProgressLine("drawing"))
    texts = describe(args.seed, settings, prompt="\n".join(captions))
    if out.suffix and len(images) == 1 and mode.captions is not None:
        save_image(out, enlarge(images[0], args.scale), texts | {"index": 0})
    elif out.suffix:
        _save_grid(out, images, captions, columns, args.scale, texts)
    else:
        for i, image in enumerate(images):
            more = {"prompt": captions[i], "index": i}
            path = out / f"{i:06d}.{args.format}"
            own_texts = describe(args.seed, settings, **more)
            save_image(path, enlarge(image, args.scale), own_texts)
        if len(images) <= FILE_MOST:
            path = out / "grid.png"
            _save_grid(path, images, captions, columns, args.scale, texts)
    print(f"{out}: {len(images)} {'image' if len(images) == 1 else 'images'}")


def _fill(mode, options, captions, settings, args, out):
    """A list's pictures into a folder: those that it lacks, this process's share."""
    indexes = [next(f.glob("*.json"), None) for f in split_folders(args.model)]
    model_sha256 = ",".join(sha256_file(i) for i in indexes if i) or None
    identity = settings | {"seed": args.seed, "dtype": args.dtype}
    if args.scale != 1:  # folders of older versions have no such key
        identity["scale"] = args.scale
    folder = PictureFolder(
        out, captions, identity | {"model_sha256": model_sha256}, args.format
    )
    chunks = [*folder.chunks(args.batch_size, args.process, args.processes)]
    if chunks:
        model, settings = _load(args, options, settings)
        progress = ProgressLine("drawing")
        total, done = sum(rows.stop - rows.start for rows in chunks), 0
        for rows in chunks:
            within = Within(progress, done, total)
            images = mode.draw(model, options, captions, rows, within)
            for i, image in enumerate(images, rows.start):
                more = {"prompt": captions[i], "index": i}
                image = enlarge(image, args.scale)
                folder.put(i, image, describe(args.seed, settings, **more))
            done += len(images)
    left = len(folder.missing())
    if not left and len(captions) <= GRID_MOST:
        images = [read_image(folder.path(i)) for i in range(len(captions))]
        texts = describe(args.seed, settings, prompt="\n".join(captions))
        _save_grid(out / "grid.png", images, captions, args.columns, 1, texts)
    print(f"{out}: {len(captions) - left} of {len(captions)} images")


def _load(args, options, settings):
    """The model, and the settings with how it draws by them, which is printed."""
    loading = {"dtype": args.dtype, "batch_size": args.batch_size, "lora": args.lora}
    model = UnCLIP.load(args.model, **loading)
    drawn_with = listings.drawn_with(model, options)
    for part, values in drawn_with.items():
        listed = ", ".join(f"{key} {value}" for key, value in values.items())
        print(f"{part}: {listed}")
    return model, {**settings, "drawn_with": drawn_with}


def _steps(value):
    """A number of steps that is written in digits is a number."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _check(args, options):
    counts = ("samples", "frames", "processes", "batch_size", "columns", "scale")
    for flag in counts:
        value = options.get(flag, getattr(args, flag, None))
        if value is not None and value < 1:
            raise UsageError(f"--{flag} must be at least 1, got {value}")
    if not 0 <= args.process < args.processes:
        raise UsageError(
            f"--process must be from 0 to {args.processes - 1}, got {args.process}"
        )
    if args.format not in FORMATS:
        raise UsageError(f"--format {args.format!r}: expected one of {FORMATS}")
    suffix = pathlib.Path(args.out).suffix.lower()
    if suffix and suffix.removeprefix(".") not in FORMATS:
        raise UsageError(f"--out {args.out!r} must be a .png or .webp file or a folder")


def _check_grid(out, count):
    if count > FILE_MOST:
        raise UsageError(
            f"--out={out} would be one grid of {count:,} images: give a folder, "
            f"--out={out.with_suffix('')}, for more than {FILE_MOST:,}"
        )


def _save_grid(path, images, captions, columns, scale, texts):
    """Writes a captioned grid of images, each enlarged by `scale` at least."""
    tile = max(MIN_TILE, scale * min(images[0].shape[:2]))
    save_image(path, caption_grid(images, captions, columns, tile), texts)


def check_out(out: pathlib.Path, is_list: bool, overwrite: bool) -> None:
    """Tries whether `out` can be written, before anything is drawn.

    Args:
      out: a file, or a folder that is made if it does not exist.
      is_list: whether images are drawn one by one: such a folder is continued.
      overwrite: whether what is there may be replaced.

    Raises UsageError if it cannot be written, or is there and may not be replaced.
    """
    is_file = bool(out.suffix)
    file = out if is_file else out / "grid.png"
    trial = file.with_name(f".{file.name}.00000000.partial")  # as long as any name
    try:
        is_folder = is_file and out.is_dir()
        there = file.exists() and (is_file or not is_list)
        trial.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UsageError(
            f"--out {str(out)!r} cannot be written: {error.strerror}"
        ) from None
    if is_folder:
        raise UsageError(f"--out {str(out)!r} is a folder: name a file in it")
    if there and not overwrite:
        raise UsageError(
            f"--out {str(out)!r} is there already: give --overwrite to replace it, or "
            "another --out"
        )


def describe(seed: int, settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The metadata of a drawn image: how to draw it again."""
    return {
        **more,
        "seed": seed,
        "settings": json.dumps(settings, sort_keys=True),
        "software": f"unclip_jax {unclip_jax.__version__}, jax {jax.__version__}",
    }
