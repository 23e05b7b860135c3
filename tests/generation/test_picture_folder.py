"""Folders that fill in many runs."""

import numpy as np
import pytest

from unclip_jax.generation.picture_folder import PictureFolder

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)


def test_processes_share_a_folder_and_none_draws_twice(tmp_path):
    captions = [f"caption {i}" for i in range(10)]

    def open_folder():
        return PictureFolder(tmp_path, captions, {"seed": 1})

    shares = [[*open_folder().chunks(3, process, 2)] for process in (0, 1)]
    numbers = [[i for s in share for i in range(s.start, s.stop)] for share in shares]
    assert sorted(numbers[0] + numbers[1]) == [*range(10)] and min(map(len, shares))
    for i in numbers[0]:
        open_folder().put(i, PICTURE, {})
    assert open_folder().missing() == sorted(numbers[1])
    before = open_folder().path(0).read_bytes()
    open_folder().put(0, 255 - PICTURE, {})
    assert open_folder().path(0).read_bytes() == before
    assert [*open_folder().chunks(3, 0, 2)] == []


def test_other_settings_are_refused(tmp_path):
    first = PictureFolder(tmp_path, ["a"], {"seed": 1, "scales": (1, 2)})
    first.put(0, np.zeros((2, 2, 3), np.uint8), {})
    PictureFolder(tmp_path, ["a"], {"seed": 1, "scales": (1, 2)})
    with pytest.raises(ValueError, match="seed was 1, is 2"):
        PictureFolder(tmp_path, ["a"], {"seed": 2, "scales": (1, 2)})
    with pytest.raises(ValueError, match="captions_sha256"):
        PictureFolder(tmp_path, ["b"], {"seed": 1, "scales": (1, 2)})
