"""How fast batches come, and what starting late and long runs cost.

    python -m tests.data.benchmark [SECONDS [pairs|pictures|tars ...]]

Makes its data in a temporary folder: `pairs`, records of 768 + 768 numbers without
images; `pictures`, records of 64-pixel PNGs; and `tars` of 64-pixel JPEGs. Reads each,
or those named, for SECONDS (10) and prints examples/s of the default feed, the seconds
that starting at step 10,000,000 takes more than at 0, and the memory in use at ten
moments.
"""

import dataclasses
import io
import os
import pathlib
import sys
import tarfile
import tempfile
import time

import numpy as np
from PIL import Image

from unclip_jax.data.loader import open_data
from unclip_jax.data.record_writer import RecordWriter
from unclip_jax.data.sources.webdataset import WebDataset
from unclip_jax.tokenizer import train_tokenizer

LENGTH, WIDTH = 32, 768
LATE = 10_000_000


def write_records(folder, count=40_000, shards=4, tars=None):
    """Records of pairs; with the pictures of `tars`, if given."""
    pictures = tars and WebDataset(str(tars))
    tokenizer = train_tokenizer(["a picture of number 0123456789"], None, 600, LENGTH)
    vector = ("float32", (WIDTH,))
    writer = RecordWriter(
        folder,
        num_shards=shards,
        image_size=64 if tars else None,
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
        first = shard * (count // shards)
        examples = (
            {
                **(pictures[first + i] if tars else {}),
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


@dataclasses.dataclass
class Speed:
    """What reading costs."""

    rate: float  # examples/s
    early: float  # seconds to the first batch from step 0; the best of three
    late: float  # likewise, from step LATE
    memory: list[float]  # MB in use, at the beginning and ten times after

    def __str__(self):
        return (
            f"{self.rate:,.0f} examples/s; the first batch after {self.early:.3f} s, "
            f"at step {LATE:,} after {self.late:.3f} s; MB in use: "
            + " ".join(f"{size:.0f}" for size in self.memory)
        )


def measure(data, names, batch_size, seconds=10.0) -> Speed:
    def start(step):
        began = time.perf_counter()
        batches = data.batches(names, 0, batch_size, start_step=step)
        next(batches)
        taken = time.perf_counter() - began
        batches.close()  # ends its reading ahead
        return taken

    start(0)  # TensorFlow itself starts
    early, late = (min(start(step) for _ in range(3)) for step in (0, LATE))
    batches = data.batches(names, 0, batch_size)
    for _ in range(20):
        next(batches)
    memory, count, began = [in_use()], 0, time.perf_counter()
    for moment in range(1, 11):
        while time.perf_counter() - began < moment * seconds / 10:
            count += len(next(batches)[names[0]])
        memory.append(in_use())
    rate = count / (time.perf_counter() - began)
    batches.close()
    return Speed(rate, early, late, memory)


def in_use() -> float:
    """MB of this process's resident memory."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(seconds=10.0, *chosen):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_records(root / "pairs")
        write_tars(root / "tars")
        write_records(root / "pictures", count=4000, tars=root / "tars")
        pairs = ["clip_image", "clip_text", "tokens"]
        for title, source, names, batch_size in (
            ("records of 768-d pairs", "pairs", pairs, 1024),
            ("records of 64-pixel PNGs", "pictures", ["image", *pairs], 256),
            ("tars of 64-pixel JPEGs", "tars", ["image", "tokens"], 256),
        ):
            if chosen and source not in chosen:
                continue
            kind = "webdataset" if source == "tars" else "records"
            data = open_data({"source": kind, "path": str(root / source)})
            speed = measure(data, names, batch_size, seconds)
            print(f"{title}: {speed}", flush=True)


if __name__ == "__main__":
    main(float((sys.argv[1:] or [10])[0]), *sys.argv[2:])
