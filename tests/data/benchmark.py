"""How fast batches come, and what starting late and long runs cost.

    python -m tests.data.benchmark

Makes its data in a temporary folder: records of 768 + 768 numbers without images, and
tars of 64-pixel JPEGs. Prints examples/s of the default feed, the seconds that starting
at step 10,000,000 takes more than at 0, and the growth of memory.
"""

import io
import pathlib
import resource
import tarfile
import tempfile
import time

import numpy as np
from PIL import Image

from unclip_jax.data.loader import open_data
from unclip_jax.data.record_writer import RecordWriter
from unclip_jax.data.tokenizer import train_tokenizer

LENGTH, WIDTH = 32, 768
LATE = 10_000_000


def write_records(folder, count=40_000, shards=4):
    tokenizer = train_tokenizer(["a picture of number 0123456789"], None, 600, LENGTH)
    vector = ("float32", (WIDTH,))
    writer = RecordWriter(
        folder,
        num_shards=shards,
        image_size=None,
        arrays={
            "tokens": ("int32", (LENGTH,)),
            "clip_image": vector,
            "clip_text": vector,
        },
        tokenizer=tokenizer,
        source_fingerprint="benchmark",
        clip_fingerprint="benchmark",
    )
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 1000, WIDTH)).astype(np.float32)
    tokens = tokenizer.encode(["a picture of number 7"])[0]
    for shard in range(shards):
        examples = (
            {
                "key": f"{shard}-{i}",
                "caption": "a picture of number 7",
                "tokens": tokens,
                "clip_image": rows[0, i % 1000],
                "clip_text": rows[1, i % 1000],
            }
            for i in range(count // shards)
        )
        writer.write_shard(shard, examples)
    writer.finish()


def write_tars(folder, count=4000, tars=2):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(tars):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i in range(count // tars):
                small = rng.integers(0, 256, (8, 8, 3), np.uint8)
                picture = Image.fromarray(small).resize((64, 64), Image.BICUBIC)
                out = io.BytesIO()
                picture.save(out, "JPEG", quality=95)
                for suffix, data in (("jpg", out.getvalue()), ("txt", b"a picture")):
                    info = tarfile.TarInfo(f"{number:05d}{i:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def measure(title, data, names, batch_size, seconds=10.0):
    def start(step):
        began = time.perf_counter()
        batches = data.batches(names, 0, batch_size, start_step=step)
        next(batches)
        return batches, time.perf_counter() - began

    start(0)[0].close()  # TensorFlow itself starts
    _, early = start(0)
    batches, late = start(LATE)
    for _ in range(20):
        next(batches)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        count += len(next(batches)[names[0]])
    rate = count / (time.perf_counter() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{title}: {rate:,.0f} examples/s; the first batch after {early:.3f} s, at "
        f"step {LATE:,} after {late:.3f} s; memory grew by {grown:.0f} MB over "
        f"{count:,} examples",
        flush=True,
    )


def main():
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_records(root / "records")
        data = open_data({"source": "records", "path": str(root / "records")})
        names = ["clip_image", "clip_text", "tokens"]
        measure("records of 768-d pairs", data, names, 1024)
        write_tars(root / "tars")
        data = open_data({"source": "webdataset", "path": str(root / "tars")})
        measure("64-pixel JPEGs in tars", data, ["image", "tokens"], 256)


if __name__ == "__main__":
    main()
