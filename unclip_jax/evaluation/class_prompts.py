"""Labelled images and the sentences that name their classes, for zero_shot.py."""

import dataclasses
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Options:
    """What an image's class is, and how it is said."""

    label: str = "caption"  # field of the source's examples that holds the class
    # Names; or {label: name}, where the labels are codes; () takes those of the
    # examples as they are.
    classes: Any = ()
    templates: tuple = ("a photo of a {}",)  # sentences around a name


def read(data, options, names, rows=None):
    """The first labelled images of a data.loader.Dataset, and all classes' prompts.

    Args:
      data: the images; prompts are encoded by its tokenizer.
      options: Options, and `count` images.
      names: of the arrays that the stage embeds.
      rows: not used; the labels of all images are needed anyway.

    Returns:
      ({"image": uint8 (N, H, W, 3), "tokens": int32 (classes * templates, L)},
        {"labels": int (N,), "prompts": (classes, templates)}), for zero_shot.zero_shot.

    Raises:
      UsageError: a stage without images and captions, a source that does not say
        the label, a label that is no class, a template without a place for the name.
    """
    del rows
    where = "config.evaluators.zero_shot"
    if set(names) != {"image", "tokens"}:
        raise UsageError(
            f"{where} is for a stage that embeds images and captions, but this one "
            f"takes {', '.join(names)}"
        )
    templates = options.templates
    wrong = [t for t in templates if "{}" not in t]
    if wrong or not templates or isinstance(templates, str):
        raise UsageError(
            f"{where}.templates: expected sentences with a {{}}, got {templates!r}"
        )
    count = min(options.count, len(data))
    examples = [data.source[i] for i in range(count)]
    if options.label not in examples[0]:
        raise UsageError(
            f"{where}.label {options.label!r}: the examples have "
            f"{', '.join(sorted(examples[0]))}"
        )
    texts = [str(example[options.label]) for example in examples]
    classes = options.classes or sorted(set(texts))
    if not isinstance(classes, dict):
        classes = {name: name for name in classes}
    if unknown := sorted(set(texts) - set(classes)):
        raise UsageError(
            f"{where}.classes lacks {unknown[0]!r}, the label of an image"
            + (f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else "")
        )
    prompts = [t.format(name) for name in classes.values() for t in templates]
    numbers = {label: i for i, label in enumerate(classes)}
    arrays = {
        "image": np.stack([example["image"] for example in examples]),
        "tokens": data.tokenizer.encode(prompts),
    }
    labels = np.array([numbers[label] for label in texts])
    return arrays, {"labels": labels, "prompts": (len(classes), len(templates))}
