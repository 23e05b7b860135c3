"""More shards than a process may hold open files."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SHARDS = 200


@pytest.fixture(scope="module")
def many_shards(make_writer, examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "records"
    writer = make_writer(folder, num_shards=SHARDS)
    for i in range(SHARDS):
        writer.write_shard(i, [examples[i % len(examples)]])
    writer.finish()
    return folder


def run(code, *args):
    """What Python prints, with a limit of open files of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


READ = """
import concurrent.futures, resource, sys
import numpy as np
from unclip_jax.data.records import RecordReader

folder, soft, hard = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
reader = RecordReader(folder)

def read(seed):
    indices = np.random.default_rng(seed).permutation(len(reader))
    batch = reader.read_batch(indices, ["clip_image"], np.zeros_like(indices))
    assert all(isinstance(example, dict) for example in batch)
    numbers = [example["clip_image"][0] for example in batch]
    assert (numbers == indices % 50).all()
    return len(indices)

with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(read, range(8))), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_more_shards_than_open_files_are_read(many_shards):
    assert run(READ, many_shards, 64, 64) == f"{8 * SHARDS} 64"


def test_the_soft_limit_is_raised_to_the_hard_one(many_shards):
    assert run(READ, many_shards, 64, 2048) == f"{8 * SHARDS} 2048"


EXHAUST = """
import os, resource, sys
import array_record.python.array_record_module
from unclip_jax.data.records import RecordReader

reader = RecordReader(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
try:
    reader[0]
except OSError as error:
    for handle in taken:
        os.close(handle)
    print(error)
print(reader[0]["clip_image"][0])
"""


def test_running_out_of_open_files_is_named_with_its_remedy(many_shards):
    """As such, and not as a damaged shard that should be made again."""
    said = run(EXHAUST, many_shards)
    assert "too many open files, of 64 allowed" in said
    assert "run `ulimit -n 65536`" in said and "shard-00000-of-00200" in said
    assert "unclip_jax.embed" not in said and "remove" not in said
    assert said.endswith("\n0.0")  # with files to spare it is read
