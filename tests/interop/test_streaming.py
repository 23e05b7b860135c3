"""Tensors are read and written one by one, and compared with where they came from."""

import weakref

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from unclip_jax import models
from unclip_jax.interop import components, diffusers_prior, lazy, native, weights
from unclip_jax.interop.export import compare, export

PRIOR = {
    "model": {
        "embed_dim": 8,
        "vocab_size": 20,
        "context_length": 5,
        "eot_id": 3,
        "width": 8,
        "depth": 6,
        "num_heads": 2,
        "caption": "clip_states",
        "scan_layers": True,
    },
    "diffusion": {"schedule": "cosine", "num_steps": 10, "prediction": "x0"},
    "embedding": "standardize",
}


class Store:
    """Random parameters of a prior, and how many of them are alive at once."""

    def __init__(self):
        module = models.build("prior", PRIOR["model"])
        self.shapes = components.param_shapes("prior", module)
        rng = np.random.default_rng(0)
        self.flat = {
            name: rng.normal(size=s.shape).astype(np.float32)
            for name, s in native.leaves(self.shapes)
        }
        self.reads, self.alive, self.most = 0, 0, 0

    def read(self, name):
        array = self.flat[name].copy()
        self.reads += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(array, self._gone)
        return array

    def _gone(self):
        self.alive -= 1


@pytest.fixture
def store():
    return Store()


META = {
    "step": 3,
    "config": {},
    "export": {"part": "prior", "config": PRIOR},
    "data_info": {"clip_fingerprint": "a-clip"},
}


def test_the_library_reads_the_file(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "odd": rng.integers(0, 9, 3).astype(np.int8),
        "wide": rng.normal(size=(3, 5)),
        "turned": rng.normal(size=(4, 6)).astype(np.float32).T,
        "half": rng.normal(size=7).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "count": np.arange(3),
    }
    weights.write_tensors(tmp_path / "a", tensors, {"format": "x"})
    found = safetensors.numpy.load_file(tmp_path / "a")
    assert found.keys() == tensors.keys()
    for name, a in tensors.items():
        assert weights.same(found[name], np.ascontiguousarray(a).reshape(a.shape))
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as file:
        assert file.metadata() == {"format": "x"}
    with pytest.raises(ValueError, match="dtype 'int4': expected one of float32"):
        weights.write_tensors(tmp_path / "b", tensors, {}, "int4")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_tensor_at_a_time(store, tmp_path, dtype):
    """A run's export, native: each tensor is read once."""
    params = lazy.tree(store.shapes, store.read)
    arguments = params, META, "run", tmp_path, "native", dtype
    assert "exported the prior of run (step 3" in export(*arguments)
    assert store.reads == len(store.flat) and store.most <= 2
    assert "none differs" in compare(*arguments)
    assert store.most <= 2
    config, params, _ = native.read_part(tmp_path, "prior")
    for name, a in native.leaves(params):
        wanted = store.flat[name].astype(weights.FLOATS[dtype])
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, wanted.astype(np.float32))


def test_stacked_blocks_are_read_stack_by_stack(store, tmp_path):
    """diffusers' files have the blocks one by one: their slices are taken in turn."""
    last = [None, None]

    def read(name):  # as the reader of checkpoints: what was read last is kept
        if last[0] != name:
            last[:] = name, store.read(name)
        return last[1]

    params = lazy.tree(store.shapes, read)
    diffusers_prior.save_prior(PRIOR, params, tmp_path)
    kept = [n for n in store.flat if not n.startswith("empty_")]
    assert store.reads == len(kept) and store.most <= 2
    _, found = diffusers_prior.load_prior(tmp_path)
    block = found["transformer"]["block_4"]["attn"]["q"]["kernel"]
    stack = store.flat["transformer/blocks/attn/q/kernel"]
    np.testing.assert_array_equal(block, stack[4])


def test_what_differs_is_named(store, tmp_path):
    params = lazy.tree(store.shapes, store.read)
    arguments = META, "run", tmp_path
    export(params, *arguments)
    store.flat["time_1/bias"][3] = np.nextafter(store.flat["time_1/bias"][3], 9)
    with pytest.raises(ValueError, match="prior: time_1/bias differs: export it again"):
        compare(params, *arguments)
    with pytest.raises(ValueError, match="differs.* and .* more"):
        compare(params, *arguments, dtype="bfloat16")
    file = tmp_path / "prior" / native.WEIGHTS
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)
    with pytest.raises(ValueError, match="is not the file that was exported"):
        compare(params, *arguments)
    with pytest.raises(ValueError, match="is not the file that was exported"):
        components.read_native(tmp_path, "prior")


def test_a_bfloat16_clip_keeps_its_fingerprint(tmp_path):
    model = {k: PRIOR["model"][k] for k in ("embed_dim", "vocab_size", "eot_id")}
    model |= {"context_length": 5, "image_size": 8, "patch_size": 4}
    for tower in ("vision", "text"):
        model |= {f"{tower}_width": 8, f"{tower}_depth": 1, f"{tower}_heads": 2}
    shapes = components.param_shapes("clip", models.build("clip", model))
    params = jax.tree.map(lambda s: np.full(s.shape, 0.1, np.float32), shapes)
    native.write_part(tmp_path, "clip", {"model": model}, params, {}, "bfloat16")
    wanted = native.clip_fingerprint({"model": model}, params)
    assert components.read_native(tmp_path, "clip").clip_fingerprint == wanted
