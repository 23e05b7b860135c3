import numpy as np
import pytest

from unclip_jax.parallel import preflight


def test_who_differs_is_named():
    same = np.tile(np.arange(8), (4, 1))
    other = same.copy()
    other[[1, 3], 5] += 1
    preflight.refuse_differences({"config": same, "code": same})
    with pytest.raises(ValueError, match="process 1, 3 has another data than process"):
        preflight.refuse_differences({"config": same, "data": other})


def test_one_process_has_nobody_to_agree_with(tmp_path):
    preflight.check(tmp_path, {}, None)
    assert not list(tmp_path.iterdir())


def test_the_codes_digest_covers_every_source_file():
    assert len(preflight.code()) == 64 and preflight.code() == preflight.code()
    assert (preflight.PACKAGE / "parallel" / "preflight.py").is_file()
