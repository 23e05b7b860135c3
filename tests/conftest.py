"""Eight virtual CPU devices for every test, set before jax is imported."""

import gc
import os
import sys

import jaxtyping
import pytest

import tests.typecheck  # noqa: F401  named below
from tests.environment import xla_flags

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py could configure it")

# Without bytecode each process that a test starts compiles all libraries anew: images
# for containers often forbid it, and TensorFlow takes 14 s of CPU time instead of 4 s.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

gc.set_threshold(100_000)  # at 700 it took 7% of the time of tests/parity

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(8)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")  # no files outside tmp_path
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # TensorFlow and torch stay on CPU

# every call of these rooms is checked against the shapes in its signature
jaxtyping.install_import_hook(
    ("unclip_jax.diffusion", "unclip_jax.models"), "tests.typecheck.check"
)


@pytest.fixture
def unchecked_types():
    """For a test that passes a wrong type on purpose."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def single_device():
    """Shows one of the eight devices to the tests of a module that is not about meshes.

    A program for eight takes up to twice as long to compile, and computes eight rows
    where a test has two. Fixtures of session scope do not see it: they get a mesh.
    """
    import jax

    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: first)
        patch.setattr(jax, "local_devices", lambda: first)
        yield


@pytest.fixture(scope="session", autouse=True)
def _caches_of_users_are_left_alone(tmp_path_factory):
    """Commands that tests start inherit it, too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def _older_modules_are_no_work_for_the_garbage_collector():
    """Compiled programs of all modules so far are a million objects to walk through."""
    gc.collect()
    gc.freeze()
