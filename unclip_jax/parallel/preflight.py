"""Before a run of several processes: are they of one mind, and can they write?"""

import hashlib
import json
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

import unclip_jax

PACKAGE = pathlib.Path(unclip_jax.__file__).parent


def check(workdir, config: dict[str, Any], data_fingerprint: str | None) -> None:
    """Compares what all processes have, and reads in `workdir` what each wrote there.

    Nothing is done in a run of one process. The comparison is also the first
    collective operation: where devices cannot reach each other, it is here that they
    fail.

    Args:
      workdir: of the run, which all processes must share.
      config: plain dict.
      data_fingerprint: of the data.

    Raises:
      ValueError: another config, code or data on some processes, or a workdir that is
        not shared; the message numbers the processes.
      OSError: a workdir that cannot be written.
    """
    if jax.process_count() == 1:
        return
    # process 0 chooses a name; who does not find the file has another workdir
    token = multihost_utils.broadcast_one_to_all(_digest(uuid.uuid4().hex))
    probe = epath.Path(workdir) / f".preflight-{token.tobytes().hex()[:12]}"
    if jax.process_index() == 0:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("unclip_jax")
    found = {
        "config": _digest(json.dumps(config, sort_keys=True)),
        "code": _digest(code()),
        "data": _digest(str(data_fingerprint)),
    }
    everyone = multihost_utils.process_allgather(found)
    shared = multihost_utils.process_allgather(np.array(probe.exists()))
    if jax.process_index() == 0:
        probe.unlink()
    refuse_differences(everyone)
    apart = np.flatnonzero(~shared)
    if len(apart):
        raise ValueError(
            f"process {_list(apart)} does not see what process 0 wrote to {workdir}: "
            "all processes need the same folder, on a disk or bucket that they share"
        )


def refuse_differences(everyone: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError when processes differ.

    Args:
      everyone: what -> (processes, ...) digests.
    """
    for what, digests in everyone.items():
        others = np.flatnonzero((digests != digests[0]).any(1))
        if len(others):
            raise ValueError(
                f"process {_list(others)} has another {what} than process 0: start "
                "the same command, from the same version, on the same data everywhere"
            )


def code() -> str:
    """sha256 over the package's source files."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest(text: str) -> np.ndarray:
    """(8,) int32: process_allgather would round anything wider."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.int32)


def _list(numbers) -> str:
    return ", ".join(map(str, numbers))
