"""Plans: what is known of absent machines, and what is said of impossible ones."""

import dataclasses
import importlib.util
import pathlib
import re

import jax
import pytest

from unclip_jax import config as config_lib
from unclip_jax.planning import plan, search, topology
from unclip_jax.training.run_config import MeshConfig, read_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
HLO = """
  %ag = bf16[8,128]{1,0:T(8,128)} all-gather(bf16[1,128]{1,0} %p), dimensions={0}
  %s = (f32[4]{0}, f32[32]{0}) all-gather-start(f32[4]{0} %q), dimensions={0}
  %d = f32[32]{0} all-gather-done((f32[4]{0}, f32[32]{0}) %s)
  %r = f32[] all-reduce(f32[] %z), to_apply=%add
"""
ASSUME = {"embed_dim": 64, "context_length": 16, "vocab_size": 600, "eot_id": 599}
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install -r requirements-tpu.txt",
)


def load(name):
    return read_config(config_lib.load(str(CONFIGS / name)))


def small(name="icons/prior.py", **changes):
    config = load(name)
    model = {**config.model, "width": 128, "depth": 2}
    mesh = MeshConfig(fsdp=4)
    return dataclasses.replace(config, mesh=mesh, model=model, **changes)


def test_collectives_are_counted_once_with_their_largest_shape():
    found = plan.collectives(HLO)
    assert found == {"all-gather": (2, 8 * 128 * 2 + 32 * 4), "all-reduce": (1, 4)}


@pytest.mark.slow
def test_a_gpu_topology_says_what_it_cannot_know():
    found = plan.plan(load("paper/decoder.py"), "gpu:64")
    assert found.parameters / 1e9 == pytest.approx(3.56, abs=0.01)
    # parameters, EMA and two moments in float32 over fsdp=16; small arrays are whole
    assert found.state_bytes == pytest.approx(found.parameters * 16 / 16, rel=0.02)
    assert found.fits is None and not hasattr(found, "total_bytes")
    assert "no compiler for an absent gpu" in plan.report(found)
    found = plan.plan(load("paper/ar_prior.py"), "gpu:64")
    assert found.parameters / 1e9 == pytest.approx(2.13, abs=0.01)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", "'v9' is not one of v4, v5e, v5p, v6e"),
        ("v5p:big", "a generation and its shape"),
        ("gpu:24", "mesh data=-1, fsdp=16.*24 devices of gpu:24"),
    ],
)
def test_impossible_topologies(topology, message):
    with pytest.raises(ValueError, match=message):
        plan.plan(load("paper/decoder.py"), topology)


def test_a_grid_of_tokens_is_assumed():
    training = load("any/token_grid.py")
    sizes = {"embed_dim": 8, "target_tokens": 3, "condition_tokens": 5}
    spec = plan.assumed_spec(training, sizes)
    assert spec.target_shape == (3, 8) == spec.embedding_mean.shape
    assert spec.conditions["condition"]["shape"] == (5, 8)
    assert plan.assumed_spec(training, {"embed_dim": 8}).target_shape == (8,)


def test_impossible_batches_and_mistyped_assumptions():
    config = dataclasses.replace(load("paper/prior.py"), batch_size=100)
    with pytest.raises(ValueError, match="100 is not divisible by 64 = data 8 x fsdp"):
        plan.plan(config, "gpu:64")
    with pytest.raises(ValueError, match="embed_dim"):
        plan.plan(load("paper/prior.py"), "gpu:64", {"embed_dims": 768})
    with pytest.raises(ValueError, match="gpu:64 needs the device"):
        search.search(config, "gpu:64")


@pytest.mark.parametrize(
    ("hbm", "compiled"),
    [
        (7, [("none", 1), ("none", 2)]),  # two halves fit: nothing else is better
        (4, [("none", 1), ("none", 8)]),  # 2 + 9 / 4 cannot fit: not compiled
        (3, [("none", 1), ("dots", 1), ("dots", 8)]),
        (1, [("none", 1)]),  # not even the state
    ],
)
def test_a_search_compiles_what_may_be_best(monkeypatch, hbm, compiled):
    """Recomputing less is better; what cannot be compiled is said and left out."""
    tried = []

    def planned(config, topology, assume):
        if config.mesh.fsdp == 1:
            raise ValueError("too large")
        policy, accum = config.model["remat"], config.grad_accum
        tried.append((policy, accum))
        return plan.CompiledPlan(
            topology=topology,
            devices=2,
            mesh={"data": 1, "fsdp": 2, "tensor": 1},
            batch_size=config.batch_size,
            grad_accum=accum,
            remat=policy,
            parameters=1,
            state_bytes=2 * plan.GIB,
            batch_bytes=0,
            temp_bytes={"none": 9, "dots": 6, "full": 40}[policy] * plan.GIB // accum,
            hbm=hbm * plan.GIB,
            flops={"none": 3, "dots": 3.5, "full": 4}[policy],
            peak=1.0,
            collectives={"all-gather": (1, accum)},
        )

    monkeypatch.setattr(search, "make_devices", lambda topology: [None, None])
    monkeypatch.setattr(plan, "plan", planned)
    said = []
    found = search.search(load("paper/prior.py"), "v5e:2x1", say=said.append)
    assert tried == compiled and len(found) == len(tried)
    assert sum("too large" in line for line in said) == 12
    best = found[0]
    if hbm > 1:
        assert best.fits and (best.remat, best.grad_accum) == compiled[-1]
        assert search.table(found).count(" yes") == 1
    assert not any(p.fits for p in found[1:])


@pytest.mark.slow
@needs_compiler
def test_a_step_is_compiled_for_a_slice_that_is_not_there():
    quick, thorough = (plan.plan(small(), "v5e:4x2", ASSUME, t) for t in (False, True))
    assert quick.devices == 8 and quick.mesh == {"data": 2, "fsdp": 4, "tensor": 1}
    assert quick.fits and 0 < quick.temp_bytes < plan.GIB and quick.flops > 0
    assert "all-gather" in quick.collectives or "all-reduce" in quick.collectives
    assert sum(row.bytes_per_device for row in quick.rows) == quick.state_bytes
    # the same program; of memory about as much, or more: what fits does fit
    assert quick.state_bytes == thorough.state_bytes and quick.flops == thorough.flops
    assert 0.95 <= quick.total_bytes / thorough.total_bytes <= 4
    assert quick.step_seconds >= quick.flops / quick.peak
    assert quick.compiler_seconds > 0  # it knows the traffic to memory, too
    text = plan.report(quick)
    assert "fits" in text and "v5e:4x2: 8 devices" in text and "quickly" in text
    assert "quickly" not in plan.report(thorough)


@pytest.mark.slow
@needs_compiler
def test_a_step_that_the_compiler_refuses_does_not_fit():
    config = small(batch_size=2**20)
    found = plan.plan(config, "v5e:4x2", ASSUME)
    assert found.fits is False and found.temp_bytes > found.hbm == 15.75 * plan.GIB
    text = plan.report(found)
    assert "DOES NOT FIT" in text and "the compiler refuses it" in text
    assert " no" in search.table([found])
    other = jax.errors.JaxRuntimeError("INTERNAL: no such thing")
    with pytest.raises(jax.errors.JaxRuntimeError, match="no such thing"):
        plan.too_much(other)


@pytest.mark.slow
@needs_compiler
def test_the_table_of_plans_is_true():
    """Of the paper's models the prior is compiled soonest; other compilers may differ
    a little."""
    text = (CONFIGS.parent / "docs" / "pods.md").read_text()
    (row,) = re.findall(r"`prior.py`.*\n\| \| (`v5e:16x16` .*) \|\n", text)
    topology, _, state, temp, total, flops, seconds, _ = row.split(" | ")
    found = plan.plan(load("paper/prior.py"), topology.strip("`"))
    assert found.state_bytes / plan.GIB == pytest.approx(float(state), abs=0.01)
    assert found.temp_bytes / plan.GIB == pytest.approx(float(temp), rel=0.1)
    assert found.flops / 1e12 == pytest.approx(float(flops), rel=0.01)
    assert found.step_seconds == pytest.approx(float(seconds[:-2]), rel=0.05)
    assert found.fits and total.endswith("of 15.75")


@needs_compiler
def test_both_cores_of_a_v4_are_one_device():
    """As on the machines, whose memory they share."""
    assert len(topology.make_devices("v4:2x2x1")) == topology.count_devices("v4:2x2x1")
