import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from unclip_jax.parallel.compilation_cache import cache_folder, use_compilation_cache

ONE_DEVICE = "--xla_force_host_platform_device_count=1"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home of a user who has set nothing; jax is as before afterwards."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE)
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compiled_programs() -> list[str]:
    """Names of the files that compiling one program left."""
    jax.jit(lambda x: jnp.tanh(x) * 3)(jnp.ones(5)).block_until_ready()
    folder = jax.config.jax_compilation_cache_dir
    return [file.name for file in pathlib.Path(folder).glob("*")] if folder else []


def test_programs_are_kept_in_the_home_folder(home):
    use_compilation_cache()
    assert any("lambda" in name for name in compiled_programs())
    assert cache_folder().parent == home / ".cache" / "unclip_jax"
    assert cache_folder().stat().st_mode & 0o077 == 0  # what is read there is run


def test_the_cache_is_on_where_nothing_is_said_of_devices(home, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(cache_folder())


def test_the_cache_follows_xdg_and_the_cpu(home, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder = cache_folder()
    assert folder.parent == tmp_path / "xdg" / "unclip_jax"
    monkeypatch.setattr(pathlib.Path, "read_text", lambda self: "flags : fpu avx9")
    assert cache_folder() != folder


@pytest.mark.parametrize(
    "name,value",
    [
        ("JAX_COMPILATION_CACHE_DIR", ""),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=2"),
    ],
)
def test_there_is_none_when_turned_off_or_unsafe(home, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    use_compilation_cache()
    assert not jax.config.jax_compilation_cache_dir
    assert not (home / ".cache").exists()


def test_a_folder_of_the_users_choice_stays(home):
    mine = str(home / "mine")
    jax.config.update("jax_compilation_cache_dir", mine)
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == mine


def test_a_home_that_cannot_be_written_is_no_error(home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    use_compilation_cache()
    assert not jax.config.jax_compilation_cache_dir
