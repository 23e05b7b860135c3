"""The benchmark in small: memory stays as it is, and a late start costs nothing."""

import pytest

from tests.data import benchmark
from unclip_jax.data.loader import open_data


@pytest.mark.slow
def test_memory_stays_and_a_late_start_costs_nothing(tmp_path):
    benchmark.write_records(tmp_path / "pairs", count=4000, shards=4)
    data = open_data({"source": "records", "path": str(tmp_path / "pairs")})
    names = ["clip_image", "clip_text", "tokens"]
    speed = benchmark.measure(data, names, batch_size=256, seconds=3.0)
    assert speed.late - speed.early < 1.0, speed
    # some 10,000 examples, 65 MB, pass in each tenth even on a busy machine: keeping
    # them would show
    assert speed.memory[-1] - speed.memory[1] < 60, speed
    assert speed.rate > 1000, speed
