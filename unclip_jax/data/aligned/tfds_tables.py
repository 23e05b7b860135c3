"""Fields of TensorFlow Datasets as arrays, for data.aligned.tables."""

import pathlib
from typing import Any

import numpy as np

from unclip_jax.data.sources.tfds import find_feature, find_value, skip_images
from unclip_jax.errors import UsageError

INFO = "dataset_info.json"  # of every folder that TFDS prepared


def is_tfds(folder: pathlib.Path) -> bool:
    """Whether TFDS prepared `folder`: .../NAME/VERSION or .../NAME/CONFIG/VERSION."""
    return (folder / INFO).is_file()


def read_tfds(folder: pathlib.Path, member: str, where: str) -> np.ndarray:
    """The field "SPLIT/FIELD" of every example, in TFDS's order without shuffling.

    Args:
      folder: of a version, in any of TFDS's file formats.
      member: FIELD may be "a/b", the field b of a; numbers, tensors, labels or texts.
      where: whose it is, for messages.

    Returns:
      (n, ...), in memory.

    Raises:
      UsageError: no such split or field, rows of several shapes, damaged files.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UsageError(
            f"{where}: reading {folder} needs pip install tensorflow-datasets"
        ) from None
    try:
        builder: Any = tfds.builder_from_directory(folder)
        splits, features = builder.info.splits, builder.info.features
        split, _, field = member.partition("/")
        if split not in splits or not field or find_feature(features, field) is None:
            raise UsageError(
                f"{where}: {folder} has no {member!r}; name a field of a split, as "
                f"{folder}:{next(iter(splits), 'train')}/FIELD; it has the splits "
                f"{', '.join(splits)} and the fields {', '.join(features)}"
            )
        decoders = skip_images(features)
        if builder.info.file_format.value == "array_record":
            examples = builder.as_data_source(split, decoders=decoders)
        else:
            examples = tfds.as_numpy(builder.as_dataset(split, decoders=decoders))
        rows = [np.asarray(find_value(example, field)) for example in examples]
    except UsageError:
        raise
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise UsageError(f"{where}: {folder} cannot be read: {text}") from error
    if len(shapes := {row.shape for row in rows}) > 1:
        raise UsageError(
            f"{where}: {folder}:{member} has rows of other shapes: "
            f"{', '.join(map(str, sorted(shapes)[:2]))}; fill them up to one"
        )
    array = np.stack(rows) if rows else np.zeros(0)
    if array.dtype.kind in "SO":
        return np.array([bytes(row.item()).decode() for row in rows])
    return array
