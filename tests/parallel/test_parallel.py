import dataclasses
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from unclip_jax import config as config_lib
from unclip_jax.data import tf_feed
from unclip_jax.parallel import batches, distributed, sharding
from unclip_jax.parallel.mesh import AXES, make_mesh
from unclip_jax.training.run_config import read_config

TREE = {
    "params": {"a": {"kernel": jnp.zeros((12, 16)), "bias": jnp.zeros(16)}},
    "step": jnp.zeros((), int),
}


def specs(mesh, rules=(), min_size=64, tree=TREE):
    found = sharding.state_shardings(tree, mesh, rules, min_size)
    leaves = jax.tree_util.tree_flatten_with_path(found)[0]
    return {sharding.path_name(path): leaf.spec for path, leaf in leaves}


def test_the_mesh_takes_what_is_left():
    mesh = make_mesh(data=-1, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize(
    "axes", [{"data": 3}, {"data": -1, "fsdp": -1}, {"fsdp": 16}, {"data": 0}]
)
def test_meshes_that_do_not_fit_are_refused(axes):
    with pytest.raises(ValueError, match="mesh"):
        make_mesh(**axes)


@dataclasses.dataclass(frozen=True)
class Device:
    """A stand-in. XLA gives the GPUs (and CPUs) of each machine another slice_index."""

    id: int
    slice_index: int
    platform: str

    @property
    def device_kind(self):
        return self.platform


def machines(hosts, platform):
    """The devices of machines (or TPU slices) of 8."""
    return [Device(i, i // 8, platform) for i in range(hosts * 8)]


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_fsdp_spans_machines_of_gpus(platform, hosts):
    """The mesh of the paper's decoder; its parts are on neighbouring machines."""
    config = read_config(config_lib.load("configs/paper/decoder.py"))
    axes = dataclasses.asdict(config.mesh)
    assert axes["fsdp"] == 16
    mesh = make_mesh(**axes, devices=machines(hosts, platform))
    assert dict(mesh.shape) == {"data": hosts // 2, "fsdp": 16, "tensor": 1}
    for row in mesh.devices.reshape(-1, 16):
        first = row[0].slice_index
        assert [d.slice_index for d in row] == [first] * 8 + [first + 1] * 8


def test_only_the_data_axis_crosses_slices_of_tpus():
    with pytest.raises(ValueError, match="2 slices: the data axis, which is 1"):
        make_mesh(data=-1, fsdp=16, devices=machines(2, "tpu"))


def test_fsdp_takes_the_largest_divisible_axis():
    found = specs(make_mesh(fsdp=8, data=1))
    assert found["params/a/kernel"] == P(None, "fsdp")
    assert found["params/a/bias"] == P() and found["step"] == P()


def test_rules_come_first_and_the_first_match_decides():
    rules = ((r"kernel", ("fsdp", "tensor")), (r"a/(kernel|bias)", ()))
    found = specs(make_mesh(fsdp=4, tensor=2), rules)
    assert found["params/a/kernel"] == P("fsdp", "tensor")
    assert found["params/a/bias"] == P()


@pytest.mark.parametrize(
    "rule,message",
    [
        ((r"kernle", ("fsdp",)), "'kernle' decides nothing"),
        ((r"kernel", ("model",)), "names the mesh axis 'model'"),
        ((r"bias", (None, "fsdp")), "gives 2 axes to params/a/bias"),
        ((r"kernel", (("fsdp", "tensor"),)), "12, into 8 parts"),
        ((r"kernel", "fsdp"), "must be a tuple, got"),
        ((r"(", ("fsdp",)), "is no regex"),
    ],
)
def test_rules_that_cannot_be_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        specs(make_mesh(fsdp=4, tensor=2), (rule,))


def test_a_large_leaf_left_replicated_is_an_error():
    odd = {"w": jnp.zeros((9, 15))}
    with pytest.raises(ValueError, match="no axis divisible by fsdp=8"):
        specs(make_mesh(fsdp=8, data=1), tree=odd)
    assert specs(make_mesh(fsdp=8, data=1), ((r"w", ()),), tree=odd) == {"w": P()}


def test_the_table_has_every_leaf_and_the_bytes_on_one_device():
    mesh = make_mesh(fsdp=8, data=1)
    rows = sharding.describe(TREE, sharding.state_shardings(TREE, mesh, (), 64))
    by_path = {row.path: row for row in rows}
    assert by_path["params/a/kernel"].bytes_per_device == 12 * 16 * 4 // 8
    text = sharding.table(rows)
    assert "params/a/bias" in text and text.splitlines()[-1].startswith("total")


def test_the_summary_has_the_same_total_in_fewer_lines():
    tree = {"params": {"a": jnp.zeros((8, 16)), "b": jnp.zeros((16, 24))}}
    tree["ema"] = tree["params"]
    mesh = make_mesh(fsdp=8, data=1)
    rows = sharding.describe(tree, sharding.state_shardings(tree, mesh, (), 64))
    lines = [line.split() for line in sharding.summary(rows).splitlines()]
    one = ["None,", "fsdp", "2", "512", "256"]  # 4 bytes of 512 elements, an eighth
    assert lines[1:] == [["ema", *one], ["params", *one], ["total", "4", "512"]]


def test_batches_that_do_not_divide_name_the_numbers():
    mesh = make_mesh(data=4, fsdp=2)
    batches.check_batch_size(16, mesh, 2)
    with pytest.raises(ValueError, match="batch_size 24 is not divisible by 16"):
        batches.check_batch_size(24, mesh, 2)


def test_rows_arrive_in_order_on_the_devices():
    mesh = make_mesh(data=4, fsdp=2)
    rows = np.arange(32, dtype=np.float32).reshape(16, 2)
    placed = batches.place({"x": rows}, sharding.batch_sharding(mesh), 16)["x"]
    np.testing.assert_array_equal(placed, rows)
    assert placed.addressable_shards[0].data.shape == (2, 2)
    np.testing.assert_array_equal(batches.process_rows(mesh, 16), np.arange(16))


def test_devices_in_any_order_get_their_rows():
    devices = np.array(jax.devices())[[3, 0, 6, 1, 7, 2, 5, 4]]
    mesh = Mesh(devices.reshape(4, 2, 1), AXES)
    rows = np.arange(32, dtype=np.float32).reshape(16, 2)
    placed = batches.place({"x": rows}, sharding.batch_sharding(mesh), 16)["x"]
    np.testing.assert_array_equal(placed, rows)


def test_a_process_feeds_rows_that_need_not_be_in_a_row(monkeypatch):
    """On a 2x2x2 torus of two hosts, one holds every other row."""

    class Torus:
        def addressable_devices_indices_map(self, shape):
            return {i: (slice(4 * i, 4 * i + 2),) for i in (2, 0, 1, 3)}

    monkeypatch.setattr(batches, "batch_sharding", lambda mesh: Torus())
    rows = batches.process_rows(None, 16)
    np.testing.assert_array_equal(rows, [0, 1, 4, 5, 8, 9, 12, 13])


def test_prefetch_stays_ahead_and_counts_the_wait():
    made = []

    def source():
        for i in range(5):
            made.append(i)
            yield i

    queue = batches.Prefetch(source(), lambda x: x * 10, ahead=2)
    assert queue.take(lambda: True) == 0
    for _ in range(100):  # a thread reads what comes next
        if made == [0, 1, 2]:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2]
    assert queue.waited == 0
    assert [queue.take() for _ in range(4)] == [10, 20, 30, 40]
    assert queue.waited > 0
    with pytest.raises(StopIteration):
        queue.take()


def test_a_late_batch_costs_nothing_while_others_are_ready():
    """Every 20th of a supply that is faster than the steps is late by 7 of them."""
    step, lags = 0.01, 0

    def read(number, first, end):
        time.sleep(7 * step if number % 20 == 19 else step / 10)
        return {"x": np.zeros((end - first, 1))}

    source = tf_feed.tf_batches(read, {"x": ((1,), "float64")}, 1, 0, 100)
    queue = batches.Prefetch(source, lambda batch: batch)
    queue.take()
    time.sleep(0.2)
    for _ in range(100):
        began = time.perf_counter()
        queue.take()
        lags += time.perf_counter() - began
        time.sleep(step)
    queue.close()
    assert lags < 0.05 * 100 * step


def test_an_error_comes_after_the_batches_before_it():
    def source():
        yield 1
        raise KeyError("broken")

    queue = batches.Prefetch(source(), lambda x: x)
    assert queue.take() == 1
    for _ in range(2):
        with pytest.raises(KeyError, match="broken"):
            queue.take()
    queue.close()


def test_a_prefetch_that_is_closed_reads_no_more():
    closed = []

    def source():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    queue = batches.Prefetch(source(), lambda x: x)
    queue.take()
    queue.close()
    assert closed and not queue._thread.is_alive()


def test_contradicting_process_flags_are_refused():
    with pytest.raises(ValueError, match="given, 0 <= process_id < num_processes"):
        distributed.initialize(coordinator="localhost:1234")
    with pytest.raises(ValueError, match="auto, on or off"):
        distributed.initialize(mode="maybe")
    distributed.initialize()  # one process: nothing to join
