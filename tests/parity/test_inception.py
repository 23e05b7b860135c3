"""InceptionV3 against pytorch-fid's network, in float64, with random weights."""

import hashlib
import pathlib
import shutil

import jax
import numpy as np
import pytest
import torch

from unclip_jax.interop import inception
from unclip_jax.models.inception import LAYERS, InceptionV3


@pytest.mark.programs
@pytest.mark.slow
def test_the_network_is_pytorch_fids(fid_folder):
    with np.load(fid_folder / "weights.npz") as file:
        want = dict(file)
    loaded = inception.load_inception(str(fid_folder / "weights.pth"))
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda a: a.astype(np.float64), loaded.variables)
        got = jax.jit(InceptionV3().apply)(variables, want["images"])
        got = jax.tree.map(np.asarray, got)
    for layer, width in LAYERS.items():
        assert got[layer].shape == (4, width) and got[layer].dtype == np.float64
        assert want[layer].std() > 0.1
        np.testing.assert_allclose(got[layer], want[layer], atol=1e-9, rtol=0)


@pytest.mark.slow
def test_parameters_are_counted():
    shapes = inception.variable_shapes()
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == 23_849_952
    assert len(inception.entries()) == 94 * 5 + 1


def test_small_pictures_are_refused():
    with pytest.raises(ValueError, match="75 or more"):
        jax.eval_shape(
            InceptionV3().apply, inception.variable_shapes(), np.zeros((1, 64, 80, 3))
        )


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A file like the public one, under its name: (path, sha256)."""
    variables = inception.random_variables(seed=1)
    flat = inception.flatten(variables)
    state = {
        entry.theirs: torch.from_numpy(entry.layout.to_torch(flat[entry.ours]).copy())
        for entry in inception.entries()
    }
    state["fc.bias"] = torch.zeros(1008)
    state["Mixed_5b.branch1x1.bn.num_batches_tracked"] = torch.tensor(3)
    path = tmp_path_factory.mktemp("public") / inception.FILE
    torch.save(state, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_weights_are_downloaded_once_and_kept_as_safetensors(public, tmp_path):
    path, sha256 = public
    options = dict(cache=tmp_path / "cache", sha256=sha256[:8])
    first = inception.load_inception(url=path.as_uri(), **options)
    kept = tmp_path / "cache" / f"{pathlib.Path(inception.FILE).stem}.safetensors"
    assert kept.is_file() and not list(kept.parent.glob(".*"))
    again = inception.load_inception(url="https://nowhere.invalid/", **options)
    given = inception.load_inception(str(path))
    want = inception.fingerprint(inception.random_variables(seed=1))
    assert first.fingerprint == again.fingerprint == given.fingerprint == want
    assert "NOT COMPARABLE" not in first.label


def test_a_wrong_download_leaves_nothing(public, tmp_path):
    path, _ = public
    with pytest.raises(ValueError, match="sha256 .* expected 6726825d"):
        inception.load_inception(cache=tmp_path, url=path.as_uri())
    assert not list(tmp_path.iterdir())


def test_offline_says_what_to_fetch(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        inception.load_inception(cache=tmp_path, url="http://127.0.0.1:9/file.pth")
    text = str(error.value)
    for part in (inception.FILE, "6726825d", "127.0.0.1:9", "`weights`"):
        assert part in text
    with pytest.raises(FileNotFoundError, match="6726825d"):
        inception.load_inception(str(tmp_path / "none.pth"))


@pytest.mark.slow
def test_other_files_are_refused(public, tmp_path):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a PyTorch file"):
        inception.load_inception(str(bad))
    torch.save({"code": print}, bad)  # a pickle that names a function
    with pytest.raises(ValueError, match="plain tensors"):
        inception.load_inception(str(bad))
    state = torch.load(public[0], weights_only=True)
    state.pop("fc.weight")
    torch.save(state, bad)
    with pytest.raises(ValueError, match="fc.weight: not the InceptionV3 of FID"):
        inception.load_inception(str(bad))
    cut = tmp_path / "cut.safetensors"
    inception.convert(public[0], cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole"):
        inception.load_inception(str(cut))
    shutil.rmtree(tmp_path)


def test_random_weights_say_so():
    drawn = inception.load_inception("random")
    assert drawn.label.startswith("NOT COMPARABLE")
