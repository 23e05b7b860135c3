"""What the tests compile is kept from run to run, and shared by the workers of a run.

Compiling is half of the tests' time. jax's key for a program holds all that it depends
on (the computation, the devices, XLA's flags, jaxlib) but the kind of CPU, which names
the folder. It lies beside what pytest keeps itself: --cache-clear empties it.
"""

import os
import re
import shutil
import threading

import jax
from jax._src import compilation_cache, lru_cache

from tests.environment import ROOT
from unclip_jax.parallel.compilation_cache import MIN_COMPILE_TIME, cache_folder

FOLDER = ROOT / ".pytest_cache" / "d" / "programs"
MOST_BYTES = 2**30
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{$(.*?)^\}", re.M | re.S)
_LOOP = re.compile(r"(?:body|condition)=%?([\w.-]+)")
_NAME = re.compile(r"[\w.-]+")
_COLLECTIVE = re.compile(
    r" (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-|send|recv)"
)


class Programs(lru_cache.LRUCache):
    """A folder of files that are whole or not there, whoever reads meanwhile."""

    def put(self, key: str, value: bytes) -> None:
        path = self.path / f"{key}{lru_cache._CACHE_SUFFIX}"
        partial = path.with_name(f".{os.getpid()}-{threading.get_ident()}")
        partial.write_bytes(value)
        partial.replace(path)


def keep_programs() -> None:
    """Lets this process keep what it compiles, unless a folder is set already.

    Not programs whose devices talk to each other in a loop: jaxlib 0.10 aborts on some
    of these that it reads back.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    put = compilation_cache.put_executable_and_time

    def put_what_is_safe(key, name, executable, *rest):
        modules = executable.hlo_modules()
        if not any(talks_in_a_loop(module.to_string()) for module in modules):
            put(key, name, executable, *rest)

    compilation_cache.put_executable_and_time = put_what_is_safe
    compilation_cache.get_file_cache = lambda path: (Programs(path, max_size=-1), path)
    jax.config.update("jax_compilation_cache_dir", str(FOLDER / cache_folder().name))
    jax.config.update(MIN_COMPILE_TIME, 0.0)


def talks_in_a_loop(hlo: str) -> bool:
    """Whether a while loop of a compiled module (its text) has a collective."""
    computations = dict(_COMPUTATION.findall(hlo))
    todo, inside = _LOOP.findall(hlo), set()
    while todo:
        name = todo.pop()
        if name not in inside:
            inside.add(name)
            todo += computations.keys() & _NAME.findall(computations[name])
    return any(_COLLECTIVE.search(computations[name]) for name in inside)


def drop_old_programs() -> None:
    """Starts anew where programs of long ago have filled the folder."""
    if sum(file.stat().st_size for file in FOLDER.rglob("*")) > MOST_BYTES:
        shutil.rmtree(FOLDER)
