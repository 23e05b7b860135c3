import io

import jax
import pytest

from tests.training.runs import run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An unbroken run of 12 steps on 8 devices: (workdir, state, output)."""
    workdir, out = tmp_path_factory.mktemp("run") / "toy", io.StringIO()
    state = run(workdir, stream=out)
    return workdir, jax.device_get(state), out.getvalue()
