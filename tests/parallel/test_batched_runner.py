import jax
import numpy as np
import pytest

from unclip_jax.parallel.batched_runner import BatchedRunner, run_ahead
from unclip_jax.parallel.mesh import make_mesh


@pytest.fixture
def runner():
    return BatchedRunner(make_mesh(devices=jax.devices()[:2]), 3)


@pytest.mark.parametrize("rows,shapes", [(1, [2]), (3, [4]), (4, [4]), (9, [4, 4, 4])])
def test_rows_come_back_in_order_from_batches_of_one_shape(runner, rows, shapes):
    """3 rows on 2 devices are batches of 4; fewer are padded to a power of two."""
    x, seen, progress = np.arange(rows * 2.0).reshape(rows, 2), [], []

    def double(batch, scale):
        seen.append(len(batch))
        return {"double": 2 * batch, "scaled": batch * scale[:, None]}

    scale = np.arange(rows)
    result = runner.map(double, (x, scale), lambda *counts: progress.append(counts))
    np.testing.assert_array_equal(result["double"], 2 * x)
    np.testing.assert_array_equal(result["scaled"], x * scale[:, None])
    assert seen == shapes
    ends = [min(4 * (i + 1), rows) for i in range(len(shapes))]
    assert progress == [(0, rows), *((end, rows) for end in ends)]


@pytest.mark.parametrize("ahead,expected", [(True, "ab.c.."), (False, "a.b.c.")])
def test_the_next_batch_is_sent_before_this_one_is_read(ahead, expected):
    log = []

    def run(batch):
        log.append(batch)
        return batch.upper()

    for batch, result in run_ahead(run, "abc", ahead):
        log.append(".")
        assert result == batch.upper()
    assert "".join(log) == expected
