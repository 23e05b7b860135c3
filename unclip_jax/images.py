"""Images and their files: how they are read, cropped and written, the same everywhere.

An image is uint8 (H, W, 3), sRGB. Whatever a file holds is read as one sees it: the
camera's rotation is applied; transparent parts become white; palettes, gray and CMYK
become RGB; 16 bits and more are scaled to 8; of an animation the first frame is taken.

Every file is opened by `opened`, which names it in each message. Only regular files
are, and no other program is ever started for one.
"""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Generator, Mapping, Sequence
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write, list_files, why_not_regular

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SUFFIXES += (".pgm", ".ppm")
FORMATS = ("png", "webp")  # that are written
_LFS_POINTER = b"version https://git-lfs"
_BY_PROGRAMS = ("EPS", "WMF")  # formats for which Pillow starts others
_DESCRIPTION = 0x010E  # EXIF's ImageDescription: in WebP, the metadata as JSON


class UnreadableImage(UsageError):
    """A file that is not an image, or not one that can be read.

    Attributes:
      reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name!r} is not a readable image: {reason}")
        self.reason = reason


def find_images(paths: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """Returns files as they are named, and for folders the image files in them by name.

    Numbers in names count by their value: 2.png comes before 10.png. A folder's
    grid.png, which shows the others, is left out.

    Raises:
      FileNotFoundError: what is not there, or a folder without images.
    """
    files = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            names = list_files(path, SUFFIXES, recursive=False)
            names = sorted(names, key=natural_key)
            inside = [path / name for name in names if name != "grid.png"]
            if not inside:
                raise FileNotFoundError(
                    f"folder {str(path)!r} holds no images (expected "
                    f"{', '.join(SUFFIXES)})"
                )
            files += inside
        elif not path.exists():
            raise FileNotFoundError(f"image {str(path)!r} does not exist")
        elif problem := why_not_regular(path):
            raise UsageError(f"image {str(path)!r} is {problem}, not a regular file")
        else:
            files.append(path)
    return files


def natural_key(name: str) -> list:
    """A key that sorts names as people count: text as text, digits by their value."""
    parts = re.split(r"(\d+)", name)  # text, digits, text, ...
    return [(int(part), part) if i % 2 else part for i, part in enumerate(parts)]


def read_image(path: str | os.PathLike, size: int | None = None) -> np.ndarray:
    """Reads a file as uint8 (H, W, 3), `fit` to `size` if that is given.

    Raises what `open_rgb` does.
    """
    pixels = np.asarray(open_rgb(path))
    return pixels if size is None else fit(pixels, size)


def read_mask(path: str | os.PathLike, images: Sequence[np.ndarray]) -> np.ndarray:
    """Reads a mask as bool (H, W): where it is white or, on a layer, painted at all.

    A layer of a paint program is transparent where nothing was painted; its colors do
    not count.

    Args:
      path: an image file.
      images: (H, W, 3) each, which the mask belongs to.

    Raises:
      UsageError: a file that is no image, or of another size than one of the images.
    """
    with opened(path) as image:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        is_layer = alpha.min() < 255  # an opaque one was saved with alpha for nothing
        mask = (alpha if is_layer else np.asarray(to_rgb(image).convert("L"))) > 127
    for other in images:
        if other.shape[:2] != mask.shape:
            (height, width), (h, w) = mask.shape, other.shape[:2]
            raise UsageError(
                f"mask {str(path)!r} is {width}x{height}, but an image {w}x{h}: a mask "
                "has the size of what it covers"
            )
    return mask


def open_rgb(file: str | os.PathLike | IO[bytes], name: str = "") -> Image.Image:
    """Reads a file, or an open one, as an RGB image of Pillow's.

    Args:
      file: of any format that Pillow reads.
      name: what to call it in messages; the path by default.

    Raises:
      FileNotFoundError: no such file.
      UsageError: the file is not an image, broken, or larger than Pillow's limit
        (a file of a few bytes can announce billions of pixels).
    """
    with opened(file, name) as image:
        return to_rgb(image)


@contextlib.contextmanager
def opened(
    file: str | os.PathLike | IO[bytes], name: str = ""
) -> Generator[Image.Image]:
    """Opens an image, whose pixels are not read yet, for the length of a `with` block.

    Args:
      file: a path, or a binary file.
      name: what to call it in messages; the path by default.

    Raises:
      What `open_rgb` does, also for what Pillow raises inside of the block. A
      UsageError raised there passes through.
    """
    name = name or os.fsencode(str(file)).decode(errors="replace")
    try:
        if isinstance(file, str | os.PathLike):
            problem = why_not_regular(file)
            if problem == "no such file":
                raise FileNotFoundError
            if problem:
                raise UnreadableImage(name, f"it is {problem}, not a regular file")
        with Image.open(file) as image:
            if image.format in _BY_PROGRAMS:
                raise UnreadableImage(name, f"it is {image.format}, not pixels")
            yield image
    except UsageError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"image {name!r} does not exist") from None
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        reason = (
            f"too large an image: it says that it has more than the {limit:,} pixels "
            "that Pillow reads, as a few bytes can claim billions; make it smaller"
        )
        raise UnreadableImage(name, reason) from error
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        raise UnreadableImage(name, _explain(file, error)) from error


def _explain(file, error: Exception) -> str:
    """What is wrong with a file that Pillow cannot read."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(file, str | os.PathLike):
            with open(file, "rb") as opened_file:
                start = opened_file.read(len(_LFS_POINTER))
        else:
            file.seek(0)
            start = file.read(len(_LFS_POINTER))
        if not start:
            return "it is empty"
        if start == _LFS_POINTER:
            return "it is a pointer of Git LFS, not the file: run `git lfs pull`"
    # without the address of the buffer that some messages name
    return "not an image" if "cannot identify" in str(error) else str(error)


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an opened image of any mode as one sees it, RGB and in memory."""
    image.load()
    with contextlib.suppress(Exception):  # EXIF may be damaged where pixels are not
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 and 32 bits
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Scales the shorter side to `size` and cuts the centre square out.

    Of a `size` of two sides the largest rectangle of their ratio is cut out.

    The pixels are those of transformers.CLIPImageProcessor before it normalizes them
    (PIL's bicubic filter, which averages when it shrinks). An image of the right size
    is left as it is.

    Args:
      image: uint8 (H, W, 3).
      size: side of the square, or (rows, columns).

    Returns:
      uint8 (size, size, 3), or (rows, columns, 3).
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (rows, columns):
        return image
    height, width = image.shape[:2]
    # by the side that the result has least of to spare; whole numbers, exactly
    side, to = (height, rows) if rows * width >= columns * height else (width, columns)
    height, width = (int(to * old / side) for old in (height, width))
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(center_crop(scaled, (rows, columns)))


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeats each pixel of (H, W, 3) `factor` times in both directions."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def to_square(
    image: Image.Image, size: int, position: float | None = None
) -> np.ndarray:
    """One of the largest squares of an RGB image, scaled: uint8 (size, size, 3).

    Args:
      image: of any size.
      size: of the result.
      position: of the square along the longer side, in [0, 1): equal parts of it are
        the whole pixels at which a square may begin. None is the middle.
    """
    side = min(image.size)
    if position is None:
        left, top = ((n - side) // 2 for n in image.size)
    else:
        left, top = (int(position * (n - side + 1)) for n in image.size)
    if side != size:
        image = image.resize(
            (size, size),
            Image.Resampling.BICUBIC,
            box=(left, top, left + side, top + side),
            reducing_gap=3.0,  # whole factors first: much faster, as good to the eye
        )
    elif image.width != image.height:
        image = image.crop((left, top, left + side, top + side))
    return np.array(image)


def center_crop(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """The centre square of `size` pixels, or the centre of (rows, columns)."""
    rows, columns = (size, size) if isinstance(size, int) else size
    left, top = (image.width - columns) // 2, (image.height - rows) // 2
    return image.crop((left, top, left + columns, top + rows))


def save_image(
    path: str | os.PathLike,
    image: np.ndarray,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes uint8 (H, W, 3) by the suffix of `path`, atomically and without loss.

    `read_metadata` reads the metadata back; in PNG they are text entries.

    Raises UsageError for an image of another type, or a path that is no *.png, *.webp.
    """
    path = pathlib.Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(f"{path} should end in {' or '.join(FORMATS)}")
    opened = Image.fromarray(check_image(image))
    texts = {key: str(value) for key, value in (metadata or {}).items()}
    if kind == "png":
        info = PngImagePlugin.PngInfo()
        for key, value in texts.items():
            info.add_itxt(key, value)  # iTXt: prompts need not be Latin-1
        options = {"pnginfo": info}
    else:
        exif = Image.Exif()
        exif[_DESCRIPTION] = json.dumps(texts)  # ASCII, whatever the prompt
        options = {"exif": exif, "lossless": True}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: opened.save(file, kind, **options))


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Returns what `save_image` wrote into a file beside the image."""
    with opened(path) as image:
        if isinstance(image, PngImagePlugin.PngImageFile):  # texts before the pixels
            return {str(k): v for k, v in image.info.items() if isinstance(v, str)}
        return json.loads(image.getexif().get(_DESCRIPTION, "{}"))


def check_image(image: Any) -> np.ndarray:
    """Returns the image as an array; UsageError unless it is uint8 (H, W, 3)."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(
            f"an image must be uint8 (H, W, 3), got {image.dtype} {image.shape}"
        )
    return image


def _to_8_bits(image):
    """Gray of 16 or 32 bits, or floats, to 8 bits."""
    gray = np.asarray(image, np.float64)
    if image.mode.startswith("I;16"):
        top = 65535.0
    elif image.mode == "F" and gray.max() <= 1:
        top = 1.0
    else:  # 32 bits say nothing about what white is
        top = 65535.0 if gray.max() > 255 else 255.0
    return Image.fromarray((gray / top * 255).clip(0, 255).round().astype(np.uint8))
