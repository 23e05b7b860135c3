"""Compiled programs are kept on disk, so that a command compiles them once.

They lie in ~/.cache/unclip_jax (XDG_CACHE_HOME moves it), apart for each kind of CPU,
since a home folder may be shared. jax's own settings go before: a
JAX_COMPILATION_CACHE_DIR is used as it is, and an empty one, or
JAX_ENABLE_COMPILATION_CACHE=false, turns the cache off.
"""

import os
import pathlib
import platform
import re
import zlib

import jax
from jax.experimental.compilation_cache import compilation_cache

MIN_COMPILE_TIME = "jax_persistent_cache_min_compile_time_secs"


def use_compilation_cache() -> None:
    """Lets jax keep what it compiles, unless its settings say otherwise.

    Not where the CPU stands for several devices: jaxlib 0.10 aborts on some programs
    that it reads back then, with collectives in a loop.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or _has_virtual_devices():
        return
    # pyrefly: ignore [missing-attribute]: jax defines its settings as it starts
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # no home to write to
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if MIN_COMPILE_TIME.upper() not in os.environ:
        jax.config.update(MIN_COMPILE_TIME, 0.0)  # small programs are many
    # of what was compiled before, jax remembers that there was no cache
    compilation_cache.reset_cache()


def cache_folder() -> pathlib.Path:
    """The folder of the programs for this kind of CPU; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    kind = f"jax-{platform.machine()}-{zlib.crc32(_cpu_features().encode()):08x}"
    return pathlib.Path(root) / "unclip_jax" / kind


def _cpu_features() -> str:
    """What XLA may compile for, in the words of the operating system."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return platform.processor()
    features = re.search(r"^(flags|features)\s*:.*", text, re.IGNORECASE | re.MULTILINE)
    return features.group() if features else platform.processor()


def _has_virtual_devices() -> bool:
    """Whether XLA was told to make several devices of the CPU; starts no backend."""
    flag = r"xla_force_host_platform_device_count=(\d+)"
    counts = re.findall(flag, os.environ.get("XLA_FLAGS", ""))
    # pyrefly: ignore [missing-attribute]: jax defines its settings as it starts
    count = counts[-1] if counts else jax.config.jax_num_cpu_devices
    return int(count) > 1
