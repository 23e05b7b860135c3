import numpy as np
import pytest

from unclip_jax.parallel import distributed


def test_who_differs_is_named():
    same = np.tile(np.arange(8), (4, 1))
    other = same.copy()
    other[[1, 3], 5] += 1
    distributed.refuse_differences({"config": same, "code": same})
    with pytest.raises(ValueError, match="process 1, 3 has another data than process"):
        distributed.refuse_differences({"config": same, "data": other})


def test_one_process_has_nobody_to_agree_with(tmp_path):
    distributed.check_consistency(tmp_path, {}, None)
    assert not list(tmp_path.iterdir())
