"""A source's training and validation examples."""

import pickle

import numpy as np
import pytest
from PIL import Image

from unclip_jax.data.sources import CountingSource, LoadingSource, make_source


@pytest.fixture
def data(tmp_path):
    """40 images with 20 captions, each of two images."""
    for i in range(40):
        Image.new("RGB", (5, 4), (i, 2 * i, 0)).save(tmp_path / f"{i:02d}.png")
        (tmp_path / f"{i:02d}.txt").write_text(f"thing {i % 20}\nthe same\n")
    Image.new("RGB", (5, 4)).save(tmp_path / "none.png")
    return {"source": "folder", "path": str(tmp_path), "image_size": 4}


def halves(data, **options):
    data = {**data, "held_out": 0.4, **options}
    return [make_source({**data, "subset": s}) for s in ("train", "validation")]


def test_no_caption_is_in_both_and_nothing_is_lost(data):
    whole, (train, validation) = make_source(data), halves(data)
    assert len(train) + len(validation) == len(whole) == 40
    assert 4 <= len(validation) <= 28  # 8 captions of 20 are expected
    captions = [{s[i]["caption"] for i in range(len(s))} for s in (train, validation)]
    assert not captions[0] & captions[1] and len(captions[0] | captions[1]) == 20
    by_key = {example["key"]: example for example in map(whole.__getitem__, range(40))}
    for part in (train, validation):
        for i in range(len(part)):
            own = by_key.pop(part[i]["key"])
            np.testing.assert_array_equal(part[i]["image"], own["image"])
            assert part.find_captions(i) == own["captions"]
            decoded = part.decode(part.load_bytes(i), None)
            np.testing.assert_array_equal(decoded["image"], own["image"])
    assert not by_key
    assert len({s.fingerprint for s in (whole, train, validation)}) == 3
    assert isinstance(train, LoadingSource) and isinstance(train, CountingSource)
    assert train.failed == {"no caption": 1}
    with pytest.raises(IndexError):
        train[len(train)]
    assert len(pickle.loads(pickle.dumps(train))) == len(train)


def test_an_example_stays_where_it_is_when_others_come(data, tmp_path):
    def keys(source):
        return {source[i]["key"] for i in range(len(source))}

    before = [keys(source) for source in halves(data)]
    for i in range(40, 60):
        Image.new("RGB", (5, 4)).save(tmp_path / f"{i:02d}.png")
        (tmp_path / f"{i:02d}.txt").write_text(f"another {i}")
    after = [keys(source) for source in halves(data)]
    assert before[0] <= after[0] and before[1] <= after[1]


def test_impossible_ones_are_refused(data):
    with pytest.raises(ValueError, match="subset 'test': expected one of train, valid"):
        make_source({**data, "subset": "test"})
    with pytest.raises(ValueError, match="held_out 0.0: expected a share"):
        make_source({**data, "subset": "train", "held_out": 0})
    with pytest.raises(ValueError, match="held_out = 0.4 is for a config.data.subset"):
        make_source({**data, "held_out": 0.4})
