"""Joining the processes of one run: before any backend use, and only when several."""

import importlib.util
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from unclip_jax.parallel.roll_call import roll_call

# Variable -> how many processes it announces, for launchers jax can read by itself.
_LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": int,
    "OMPI_COMM_WORLD_SIZE": int,
    "TPU_WORKER_HOSTNAMES": lambda names: len(names.split(",")),
}


def initialize(
    mode: str = "auto",
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    *,
    connect_timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> None:
    """Calls jax.distributed.initialize when the run has several processes.

    Args:
      mode: "auto" (when a launcher announces several processes, on a TPU machine, or
        when a coordinator is given), "on" or "off".
      coordinator: host:port of process 0; then the next two are needed as well.
      num_processes: processes of the run.
      process_id: number of this one, from 0.
      connect_timeout: seconds to wait for the others.
      heartbeat_timeout: seconds of silence after which a process counts as lost.

    Raises:
      ValueError: contradicting arguments, or other processes did not show up; with a
        coordinator they are named.
    """
    if mode not in ("auto", "on", "off"):
        raise ValueError(f"distributed must be auto, on or off, got {mode!r}")
    if coordinator and not (0 <= process_id < num_processes):
        raise ValueError(
            f"with coordinator {coordinator!r}, num_processes and process_id must be "
            f"given, 0 <= process_id < num_processes; got {process_id} of "
            f"{num_processes}"
        )
    several = coordinator or announced_processes(os.environ) > 1 or _on_tpu_machine()
    if mode == "off" or (mode == "auto" and not several):
        return
    given: dict[str, Any] = dict(
        coordinator_address=coordinator,
        num_processes=num_processes,
        process_id=process_id,
    )
    if coordinator:
        roll_call(coordinator, num_processes, process_id, connect_timeout)
    try:
        jax.distributed.initialize(
            **(given if coordinator else {}),
            initialization_timeout=connect_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except RuntimeError as error:
        raise ValueError(
            f"the processes of the run did not meet: {error}; start the same command "
            "on every host at about the same time"
        ) from error


def lost_peer(error: Exception) -> bool:
    """Whether an error of the runtime means that another process is gone."""
    text = str(error).lower()
    return any(word in text for word in ("gloo", "peer", "heartbeat", "another task"))


def announced_processes(environment: Mapping[str, str]) -> int:
    """Processes that the launcher's environment variables announce (1 if none do)."""
    counts = [
        count(environment[name])
        for name, count in _LAUNCHERS.items()
        if environment.get(name)
    ]
    return max(counts, default=1)


def _on_tpu_machine() -> bool:
    """A TPU VM, whose metadata server tells jax the other hosts."""
    chips = pathlib.Path("/dev/accel0").exists() or pathlib.Path("/dev/vfio/0").exists()
    return (
        chips
        and importlib.util.find_spec("libtpu") is not None
        and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    )
