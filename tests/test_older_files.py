"""What version 0.1.0 wrote still loads: a run, records and an export.

tests/data/older/version_0_1.tgz holds runs/old/{prior,records,export} of tiny models on
16-pixel icons, made by that version's commands, and what its UnCLIP drew.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from tests.test_commands import command
from unclip_jax import UnCLIP
from unclip_jax.data.records import RecordReader

ARCHIVE = pathlib.Path(__file__).parent / "data" / "older" / "version_0_1.tgz"
PROMPTS = ["a red heart on a white background", "x"]


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The working folder in which the older version ran."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return pathlib.Path("runs/old")


@pytest.mark.slow
def test_an_older_export_draws_the_same(old):
    expected = np.load(old / "expected.npz")
    model = UnCLIP.load(old / "export", batch_size=2)
    options = dict(guidance=2.0, num_candidates=1, steps=4, sampler="ddpm")
    z = model.sample_embeddings(PROMPTS, seed=3, variance="fixed_small", **options)
    np.testing.assert_allclose(z, expected["embeddings"], rtol=1e-4, atol=1e-4)
    options = dict(seed=3, guidance=2.0, steps=3, sampler="ddim")
    images = model.decode(z, PROMPTS, **options)
    difference = np.abs(images.astype(int) - expected["images"])
    assert difference.max() <= 1  # other compiler settings round otherwise
    assert expected["embeddings"].std() > 0.1


def test_older_records_are_read(old):
    reader = RecordReader(old / "records" / "train")
    assert len(reader) == 256
    example = reader[len(reader) - 1]
    assert example["image"].shape == (16, 16, 3) and example["caption"]
    assert example["clip_image"].shape == (8,)


@pytest.mark.slow
def test_an_older_run_goes_on_and_is_exported(old):
    path = old / "prior" / "config.json"
    config = {**json.loads(path.read_text()), "steps": 3}  # as if stopped after step 2
    path.write_text(json.dumps(config))
    (old / "config.py").write_text(
        "import json, ml_collections\n"
        "def get_config():\n"
        f"    return ml_collections.ConfigDict(json.load(open({str(path)!r})))\n"
    )
    flags = f"--config={old}/config.py", f"--workdir={old}/prior"
    assert command("train", *flags) == 0
    assert (old / "prior" / "checkpoints" / "3").is_dir()
    assert command("export", f"--run={old}/prior", f"--out={old}/again") == 0
    assert "prior" in json.loads((old / "again/unclip.json").read_text())["parts"]
