"""Hints beside images: each record has its own, prepared as its image was."""

import numpy as np
import pytest
from PIL import Image

from tests.embedding.test_runner import Pictures
from unclip_jax.data.loader import open_data
from unclip_jax.data.records import RecordReader
from unclip_jax.embedding import runner
from unclip_jax.embedding.hints import HintFiles
from unclip_jax.images import fit


@pytest.fixture
def hints(tmp_path):
    """{key: uint8 (24, 16, 3)} in files, all but two of which can be read."""
    folder = tmp_path / "depth"
    folder.mkdir()
    rng = np.random.default_rng(0)
    shape = 20, 24, 16, 3
    made = {f"p{i}": a for i, a in enumerate(rng.integers(0, 256, shape, np.uint8))}
    for key, image in made.items():
        Image.fromarray(image).save(folder / f"{key}.png")
    (folder / "p3.png").unlink()
    (folder / "p7.png").write_bytes(b"torn")
    return made


def test_each_record_has_its_own_hint(tmp_path, clip, hints):
    folder, records = HintFiles(tmp_path / "depth"), tmp_path / "records"
    manifest = runner.embed_source(
        Pictures(size=16), records, clip, hints=folder, shard_size=9
    )
    reasons = {bad["key"]: bad["reason"] for bad in manifest["skipped"]}
    assert reasons.keys() == {"p3", "p7"} and "no hint of its name" in reasons["p3"]
    assert "its hint cannot be read" in reasons["p7"]
    reader = RecordReader(records)
    assert len(reader) == 18
    for example in (reader[i] for i in range(18)):
        np.testing.assert_array_equal(example["hint"], fit(hints[example["key"]], 16))
    data = open_data({"source": "records", "path": records, "feed": "arrays"})
    assert data.take(4, ["hint"])["hint"].shape == (4, 16, 16, 3)


def test_other_files_are_other_records(tmp_path, clip, hints):
    """A run that was interrupted does not go on with them."""
    del hints
    before, records = HintFiles(tmp_path / "depth"), tmp_path / "records"
    runner.embed_source(Pictures(size=16), records, clip, hints=before, shard_size=9)
    (tmp_path / "depth" / "p5.png").unlink()
    after = HintFiles(tmp_path / "depth")
    assert after.fingerprint != before.fingerprint
    with pytest.raises(FileExistsError):
        runner.embed_source(Pictures(size=16), records, clip, hints=after, shard_size=9)


def test_a_folder_without_images_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match="config.hints: no image in"):
            HintFiles(folder)
