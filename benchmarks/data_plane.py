"""What feeding costs from far storage and at a billion examples, at a small size.

    python -m benchmarks.data_plane index

  index   scanning tars: samples/s of CPU beside Python's tarfile, memory at the peak
  bucket  batches of 64 from 600 tars whose every open and read takes 50 ms more:
          seconds to the first batch, examples/s, and how busy the cores were
  late    the share of a step loop's time that goes by without a batch, when every 20th
          batch takes as long as 7 steps
  embed   records of 256-pixel images kept at 64, by a CLIP that costs nothing

The data is made in a temporary folder. Other work on the machine costs both sides of a
ratio alike; seconds are of CPU unless it says otherwise.
"""

import contextlib
import io
import os
import pathlib
import sys
import tarfile
import tempfile
import time
import tracemalloc
import types

import numpy as np
from PIL import Image

from unclip_jax.data import loader, tf_feed
from unclip_jax.data.sources import tar_headers, tar_index, webdataset
from unclip_jax.parallel.batches import Prefetch
from unclip_jax.tokenizer import train_tokenizer


def write_tars(folder: pathlib.Path, tars: int, samples: int, image: bytes) -> list:
    """Writes tars of equal samples, as img2dataset does: a .jpg, a .txt."""
    for number in range(tars):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i in range(samples):
                for suffix, data in (("jpg", image), ("txt", b"a caption of words")):
                    info = tarfile.TarInfo(f"{number:05d}{i:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return sorted(folder.glob("*.tar"))


def scan_with_tarfile(file: pathlib.Path) -> int:
    """Counts the samples of a tar, by the library."""
    samples: dict[str, list] = {}
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            tar.members = []  # pyrefly: ignore
            place = member.offset_data, member.size
            samples.setdefault(member.name.partition(".")[0], []).append(place)
    return len(samples)


def index() -> None:
    """Prints what scanning costs."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tars = write_tars(folder, 30, 4000, bytes(1500))
        rates = {"tarfile": 0.0, "scan_tar": 0.0}
        for _ in range(3):  # in turns; the best of each
            for title, scan in (
                ("tarfile", scan_with_tarfile),
                ("scan_tar", lambda file: len(tar_headers.scan_tar(file)[0])),
            ):
                began = time.process_time()
                count = sum(scan(file) for file in tars[:5])
                rate = count / (time.process_time() - began)
                rates[title] = max(rates[title], rate)
        for title, rate in rates.items():
            print(f"{title}: {rate:,.0f} samples/s of CPU")
        print(f"ratio: {rates['scan_tar'] / rates['tarfile']:.1f}")
        tar_index.open_index(tars[:2], [folder / "warm"])
        tracemalloc.start()
        began = time.process_time()
        found = tar_index.open_index(tars, [folder / "index"])
        seconds = time.process_time() - began
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(
            f"index of {len(found):,} samples in {len(tars)} tars: "
            f"{peak / len(found):.0f} bytes a sample at the peak ({peak / 2**20:.1f} "
            f"MiB, which does not grow with the number of tars), {seconds:.1f} s while "
            "memory is traced"
        )


def add_latency(seconds: float) -> None:
    """Lets every open and read of tars and of their index wait, as a bucket would."""

    def delayed(function):
        def wait(*args, **kwargs):
            time.sleep(seconds)
            return function(*args, **kwargs)

        return wait

    for module in (webdataset, tar_index):
        far = types.SimpleNamespace(**vars(os))
        far.pread = delayed(os.pread)
        module.os = far
        module.open = delayed(open)


def bucket(latency=0.05, tars=600, samples=50, rows=64, seconds=20.0) -> None:
    """Prints how fast batches come from far storage."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
        jpeg = io.BytesIO()
        Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC).save(
            jpeg, "JPEG", quality=95
        )
        write_tars(folder, tars, samples, jpeg.getvalue())
        config = {"source": "webdataset", "path": name, "image_size": 64}
        config["context_length"] = 16
        import tensorflow  # noqa: F401, not part of what is measured

        data = loader.open_data(config, tokenizer_dir=folder / "tokenizer")
        next(data.batches(("image", "tokens"), 1, 8))  # TensorFlow starts
        add_latency(latency)
        began = time.perf_counter()
        batches = data.batches(("image", "tokens"), 0, rows)
        next(batches)
        print(f"first batch of {rows} after {time.perf_counter() - began:.2f} s")
        busy, began, count = time.process_time(), time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            count += len(next(batches)["image"])
        wall, busy = time.perf_counter() - began, time.process_time() - busy
        print(
            f"{count / wall:,.0f} examples/s at {1e3 * latency:.0f} ms a read, "
            f"{busy / wall:.2f} cores busy, {1e3 * busy / count:.2f} ms of CPU each, "
            f"load {os.getloadavg()[0]:.1f}"
        )


def late(step=0.05, lateness=7, steps=200) -> None:
    """Prints how long a step loop waits for batches of which some are late."""

    def read(number, first, end):
        time.sleep(lateness * step if number % 20 == 19 else step / 2)
        return {"x": np.zeros((end - first, 1))}

    source = tf_feed.tf_batches(read, {"x": ((1,), "float64")}, 1, 0, 100)
    with contextlib.closing(Prefetch(source, lambda batch: batch)) as batches:
        batches.take()
        time.sleep(1)
        waited = 0.0
        for _ in range(steps):
            began = time.perf_counter()
            batches.take()
            waited += time.perf_counter() - began
            time.sleep(step)
    print(
        f"every 20th batch late by {lateness} of {steps} steps of {1e3 * step:.0f} ms: "
        f"the loop idles {waited / (waited + steps * step):.2%}"
    )


class NoCLIP:
    """Stands in for a FrozenCLIP whose devices take no time."""

    batch_size, fingerprint = 128, "none"

    def __init__(self, tokenizer, width=1024, image_size=224):
        self.tokenizer = tokenizer
        vector = ("float32", (width,))
        self.arrays = {"clip_image": vector, "clip_text": vector}
        module = types.SimpleNamespace(
            image_size=image_size,
            context_length=tokenizer.context_length,
            embed_dim=width,
            dtype="float32",
        )
        self.part = types.SimpleNamespace(module=module)
        self._rows = np.random.default_rng(0).normal(size=(128, width)).astype("f4")

    def embed(self, images, tokens):
        """As FrozenCLIP's."""
        del images, tokens
        return {"clip_image": self._rows, "clip_text": self._rows}


def embed(samples=3000) -> None:
    """Prints what writing records costs beside CLIP."""
    from unclip_jax.embedding import codes, runner

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
        jpeg = io.BytesIO()
        Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC).save(
            jpeg, "JPEG", quality=90
        )
        write_tars(folder, 3, samples // 3, jpeg.getvalue())
        source = webdataset.WebDataset(name, image_size=256)
        tokenizer = train_tokenizer(["a caption of words"], None, 600, 77)
        codes.report = lambda folder: None
        busy, main = time.process_time(), time.thread_time()
        began = time.perf_counter()
        runner.embed_source(
            source,
            folder / "records",
            NoCLIP(tokenizer),
            shard_size=1000,
            image_format="jpeg",
            image_size=64,
        )
        main = 1e3 * (time.thread_time() - main) / samples
        busy = 1e3 * (time.process_time() - busy) / samples
        wall = time.perf_counter() - began
        print(
            f"{samples / wall:,.0f} examples/s; CPU of each: {busy:.2f} ms, of which "
            f"{main:.2f} in the thread that feeds the devices and writes; "
            f"load {os.getloadavg()[0]:.1f}"
        )


SECTIONS = {"index": index, "bucket": bucket, "late": late, "embed": embed}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
