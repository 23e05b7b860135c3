"""A folder of images with tables of captions, and a parquet file."""

import io

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from unclip_jax.data.sources import BadRecord, make_source

CAPTIONS = ["a cat", "a dog, brown", "une baleine à bosse", "x"]


def make(folder):
    """The same four images in three forms."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    rows = []
    for form in ("csv", "jsonl"):
        (folder / form).mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(folder / form / f"{i}.png")
    for i, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append(
            {"key": f"k{i}", "image": buffer.getvalue(), "caption": CAPTIONS[i]}
        )
    lines = [f'{i}.png,"{text}"\n' for i, text in enumerate(CAPTIONS)]
    (folder / "csv" / "metadata.csv").write_text("file_name,text\n" + "".join(lines))
    lines = [
        f'{{"file_name": "{i}.png", "text": "{t}"}}\n' for i, t in enumerate(CAPTIONS)
    ]
    (folder / "jsonl" / "metadata.jsonl").write_text("".join(lines))
    (folder / "parquet").mkdir()
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "parquet" / "train.parquet")


def open_it(folder):
    """Captions and pixels of each; None for what is left out."""
    examples = []
    for form in ("csv", "jsonl", "parquet"):
        name = "parquet" if form == "parquet" else "folder"
        path = str(folder / form)
        source = make_source({"source": name, "path": path, "image_size": 8})
        for i in range(len(source)):
            try:
                example = source[i]
                examples.append([example["caption"], example["image"]])
            except BadRecord as error:
                assert error.key and error.reason
                examples.append(None)
    return examples
