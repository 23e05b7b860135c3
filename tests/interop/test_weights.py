"""Weight files: round trips, shards, variants, and what is said of broken ones."""

import json

import numpy as np
import pytest

from tests.interop.torch_shapes import torch_shapes
from unclip_jax.interop import mapping, weights

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.normal(size=(4, 3)).astype(np.float32),
    "b.weight": RNG.normal(size=(8, 2)).astype(np.float32),
    "steps": np.arange(3),
    "scale": np.float32(2.5),
}


@pytest.mark.parametrize(
    ("dtype", "error", "shards"),
    [("float32", 0, 3), ("float16", 1e-3, 2), ("bfloat16", 1e-2, 2)],
)
@pytest.mark.parametrize("shard_bytes", [10**9, 60])
def test_round_trip(tmp_path, dtype, error, shards, shard_bytes):
    weights.write_weights(tmp_path, TENSORS, "model", dtype, shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == (
        1 if shard_bytes > 60 else shards
    )
    found = weights.read_weights(tmp_path)
    assert found.keys() == TENSORS.keys()
    for name, a in TENSORS.items():
        assert found[name].shape == np.shape(a)
        np.testing.assert_allclose(found[name], a, rtol=error, atol=0)
    assert found["a.weight"].dtype == np.float32
    assert found["steps"].dtype == TENSORS["steps"].dtype


def test_torch_reads_the_shards(tmp_path):
    from safetensors.torch import load_file

    weights.write_weights(tmp_path, TENSORS, "model", "bfloat16", 60)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        found = load_file(tmp_path / file)[name].float().numpy()
        np.testing.assert_allclose(found, TENSORS[name], rtol=1e-2)


def test_a_variant_is_taken_when_it_is_the_only_one(tmp_path):
    weights.write_weights(tmp_path, TENSORS, "model.fp16", "float16")
    assert weights.read_weights(tmp_path).keys() == TENSORS.keys()
    assert weights.read_weights(tmp_path, "fp16").keys() == TENSORS.keys()
    weights.write_weights(tmp_path, TENSORS, "model.bf16", "bfloat16")
    both = "variants 'bf16', 'fp16': keep the files of one of them"
    with pytest.raises(ValueError, match=both):
        weights.read_weights(tmp_path)
    assert weights.read_weights(tmp_path, "bf16").keys() == TENSORS.keys()
    with pytest.raises(ValueError, match="'bf16', 'fp16', not 'fp8': keep"):
        weights.read_weights(tmp_path, "fp8")


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("form", ["model.fp16-{}", "model-{}.fp16", "model-{}"])
def test_shards_of_any_variant_are_read_with_and_without_their_index(
    tmp_path, form, index
):
    weights.write_weights(tmp_path, TENSORS, "model", "float16", 60)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    for i, file in enumerate(shards, 1):
        name = form.format(f"{i:05d}-of-{len(shards):05d}")
        file.rename(tmp_path / f"{name}.safetensors")
    if not index:
        (tmp_path / "model.safetensors.index.json").unlink()
    assert weights.is_there(tmp_path)
    tensors = weights.read_weights(tmp_path)
    for name, expected in TENSORS.items():
        np.testing.assert_allclose(tensors[name], expected, rtol=1e-3)


@pytest.mark.parametrize("large", [7e4, -1e9])
def test_what_overflows_is_refused_by_name(tmp_path, large):
    tensors = {"fine": np.ones(3, np.float32), "wide": np.array([1, large], np.float32)}
    with pytest.raises(
        ValueError, match="wide holds .* too large for float16: take bf"
    ):
        weights.write_weights(tmp_path, tensors, "model", "float16")
    assert not [*tmp_path.iterdir()]
    weights.write_weights(tmp_path, tensors, "model", "bfloat16")
    file = tmp_path / "model.safetensors"
    assert not weights.diff_tensors(file, tensors, "bfloat16")
    with pytest.raises(ValueError, match="too large for float16"):
        weights.diff_tensors(file, tensors, "float16")
    tensors["wide"][1] = np.inf  # what is infinite already is no overflow
    weights.write_weights(tmp_path, tensors, "model", "float16")


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no safetensors weights"):
        weights.read_weights(tmp_path)
    weights.write_weights(tmp_path, TENSORS, "model", "float32", 60)
    first, second, _ = sorted(tmp_path.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        weights.read_weights(tmp_path)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=second.name):
        weights.read_weights(tmp_path)
    with pytest.raises(ValueError, match="'int8'"):
        weights.write_weights(tmp_path, TENSORS, "model", "int8")


TABLE = [
    *mapping.dense("in", "proj_in"),
    *mapping.conv("conv", "c.0", bias=False),
    mapping.Entry("query", "prd", mapping.SQUEEZE_2),
]
THEIRS = {
    "proj_in.weight": RNG.normal(size=(5, 3)),
    "proj_in.bias": RNG.normal(size=(5,)),
    "c.0.weight": RNG.normal(size=(7, 2, 3, 3)),
    "prd": RNG.normal(size=(1, 1, 4)),
}


def test_a_table_works_both_ways_and_on_shapes():
    ours = mapping.from_torch(TABLE, THEIRS, "x")
    assert ours["in"]["kernel"].shape == (3, 5)
    np.testing.assert_array_equal(
        ours["conv"]["kernel"][1, 2, 0, 4], THEIRS["c.0.weight"][4, 0, 1, 2]
    )
    back = mapping.to_torch(TABLE, ours)
    for name, a in THEIRS.items():
        np.testing.assert_array_equal(back[name], a)
    shapes = torch_shapes(TABLE, ours)
    assert shapes == {name: a.shape for name, a in THEIRS.items()}


def test_a_table_lists_what_does_not_fit():
    wrong = {**THEIRS, "extra": THEIRS["prd"], "buffer": THEIRS["prd"]}
    del wrong["prd"], wrong["proj_in.bias"]
    with pytest.raises(ValueError, match=r"2 missing: prd, proj_in.*1 unexpected: ex"):
        mapping.from_torch(TABLE, wrong, "the prior of x", ignore=["buffer"])
    ours = mapping.from_torch(TABLE, THEIRS, "x")
    with pytest.raises(ValueError, match="no place for space/mean"):
        mapping.to_torch(TABLE, {**ours, "space": {"mean": THEIRS["prd"]}})
    mapping.to_torch(TABLE, {**ours, "space": {"mean": THEIRS["prd"]}}, ["space/"])


def test_blocks_stack_and_unstack():
    tree = {
        "t": {f"block_{i}": {"fc": {"k": np.full(2, i)}} for i in range(11)},
        "x": np.zeros(1),
    }
    stacked = mapping.stack_blocks(tree)
    np.testing.assert_array_equal(stacked["t"]["blocks"]["fc"]["k"][:, 0], range(11))
    back = mapping.unstack_blocks(stacked)
    assert back["t"].keys() == tree["t"].keys()
    np.testing.assert_array_equal(back["t"]["block_7"]["fc"]["k"], [7, 7])


def test_a_torch_that_executes_pickles_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    assert weights.read_tensors(tmp_path / "a.pth")["a"].sum() == 2
    for version, safe in (
        ("2.5.1+cpu", False),
        ("2.6.0", True),
        ("2.14.1+cu130", True),
    ):
        monkeypatch.setattr(torch, "__version__", version)
        if safe:
            weights.read_tensors(tmp_path / "a.pth")
        else:
            with pytest.raises(ValueError, match="pip install 'torch>=2.6'"):
                weights.read_tensors(tmp_path / "a.pth")
