"""A look at the data before anybody trains on it: counts, a sheet of pictures, norms.

For each split, what training would read: the records in workdir, if they are there,
else the source. A sample spread evenly over it is read; no CLIP is needed.
"""

import collections
import pathlib

import numpy as np

from unclip_jax.data.records import MANIFEST, RecordReader
from unclip_jax.data.sources import (
    BadRecord,
    LeftOut,
    RecordSource,
    captions_of,
    failed_of,
)
from unclip_jax.embedding.config import EmbedConfig
from unclip_jax.grids import caption_grid
from unclip_jax.images import save_image

SAMPLE, SHEET = 1000, 48  # examples read; of those, on the sheet
FOLDER = "inspection"  # in workdir


def inspect(config: EmbedConfig, workdir, say=print) -> None:
    """Prints a report of every split and writes workdir/inspection/<split>.png.

    Raises UsageError or FileNotFoundError for data that cannot be opened.
    """
    workdir = pathlib.Path(workdir)
    for split in config.splits:
        folder = workdir / split
        if (folder / MANIFEST).is_file():
            source, what = RecordReader(folder), f"records in {folder}"
        else:
            source = config.open_source(split)
            what = f"source {config.data['source']!r}, not embedded yet"
        say(f"{split}: {what}")
        examples, lines = examine(source)
        for line in lines:
            say(f"  {line}")
        shown = [e for e in spread(examples, SHEET) if "image" in e]
        if shown:
            images = [e["image"] for e in shown]
            captions = [" / ".join(captions_of(e)) for e in shown]
            sheet = workdir / FOLDER / f"{split}.png"
            sheet.parent.mkdir(parents=True, exist_ok=True)
            save_image(sheet, caption_grid(images, captions, min_tile=128))
            say(f"  pictures with their captions: {sheet}")


def spread(items, count: int) -> list:
    """`count` of the items, or all, evenly spread."""
    n = min(count, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def examine(source) -> tuple[list[dict], list[str]]:
    """(a sample of its examples, lines that describe them and the whole source)."""
    examples, skipped = [], collections.Counter()
    numbers = spread(range(len(source)), SAMPLE)
    for i in numbers:
        try:
            examples.append(source[i])
        except LeftOut as bad:
            skipped[f"left out for {bad.reason}"] += 1
        except BadRecord as bad:
            skipped[f"unreadable: {bad.reason}"] += 1
    lines = [f"{len(source):,} examples; {len(numbers):,} of them looked at"]
    for reason, count in failed_of(source).items():
        lines.append(f"besides, {count:,} that are no examples: {reason}")
    manifest = source.manifest if isinstance(source, RecordSource) else {}
    if bad := manifest.get("skipped"):
        lines.append(f"when embedding, {len(bad):,} were unreadable, e.g. {bad[0]}")
    for reason, count in manifest.get("left_out", {}).items():
        lines.append(f"when embedding, {count:,} were left out for {reason}")
    for reason, count in skipped.most_common(10):
        lines.append(f"of those looked at, {count:,} {reason}")
    if examples:
        lines += [*_captions(examples), *_embeddings(examples)]
    return examples, lines


def _captions(examples):
    counts = [len(captions_of(e)) for e in examples]
    texts = collections.Counter(c for e in examples for c in captions_of(e))
    words = [len(text.split()) for text in texts.elements()]
    yield (
        f"captions: {np.mean(counts):.2f} per example ({min(counts)} to {max(counts)}),"
        f" {np.mean(words):.1f} words each ({min(words)} to {max(words)}), "
        f"{len(texts) / len(words):.0%} different"
    )
    if len(texts) < len(words):
        text, count = texts.most_common(1)[0]
        yield f"the most frequent caption, {count} times: {text!r}"
    if repeated := len(examples) - len({e["key"] for e in examples}):
        yield f"{repeated} keys are there more than once"


def _embeddings(examples):
    vectors = {}
    for name in ("clip_image", "clip_text"):
        if name in examples[0]:
            vectors[name] = np.stack([e[name] for e in examples]).astype(np.float64)
            norms = np.linalg.norm(vectors[name], axis=1)
            yield (
                f"norm of {name}: {norms.mean():.3f} +- {norms.std():.3f} "
                f"({norms.min():.3f} to {norms.max():.3f}), {vectors[name].shape[1]} "
                "numbers"
            )
    if len(vectors) == 2:
        image, text = (
            v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors.values()
        )
        own, other = (image * text).sum(1), (image * np.roll(text, 1, 0)).sum(1)
        yield (
            f"cosine of image and caption: {own.mean():.3f} +- {own.std():.3f}; of "
            f"image and another's caption: {other.mean():.3f}"
        )
