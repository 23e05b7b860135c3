"""What feeding costs from far storage and at a billion examples, at a small size.

    python -m benchmarks.data_plane index

  index   scanning tars: samples/s of CPU beside Python's tarfile, memory at the peak

The data is made in a temporary folder. Other work on the machine costs both sides of a
ratio alike; seconds are of CPU unless it says otherwise.
"""

import io
import pathlib
import sys
import tarfile
import tempfile
import time
import tracemalloc

from unclip_jax.data.sources import tar_headers, tar_index


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


SECTIONS = {"index": index}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
