"""Runs of several processes: they meet, compare notes, work and end together.

Who is missing is asked over plain TCP before jax is: jax itself aborts a process whose
run is not complete in time, without naming the absent ones.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

import unclip_jax
from unclip_jax.errors import UsageError
from unclip_jax.files import sha256_folder
from unclip_jax.parallel import launchers

# The flags of a command that may run in several processes.
FLAGS = {
    "distributed": ("auto", "auto, on or off: join the other processes of the run"),
    "coordinator": ("", "host:port of process 0"),
    "num_processes": (0, "processes of the run, with --coordinator"),
    "process_id": (-1, "number of this process, from 0, with --coordinator"),
    "connect_timeout": (300, "seconds to wait for the other processes"),
    "heartbeat_timeout": (100, "seconds of silence that mean a process is lost"),
}
PACKAGE = pathlib.Path(unclip_jax.__file__).parent


def run_distributed(run: Callable[[], Any], args: Any) -> Any:
    """Calls run() once all processes have met, and returns what it does.

    A process that is lost ends all of them.

    Args:
      run: the work.
      args: has the attributes that FLAGS names.

    Raises what `run` does in a run of one process. With several, a process that fails
    says why and exits at once with code 1 (2 for a mistake in what was asked): waiting
    for the others, which wait for it in the middle of a step, could take minutes.
    """
    initialize(
        args.distributed,
        args.coordinator,
        args.num_processes,
        args.process_id,
        connect_timeout=args.connect_timeout,
        heartbeat_timeout=args.heartbeat_timeout,
    )
    if jax.process_count() == 1:
        return run()
    me = f"process {jax.process_index()} of {jax.process_count()}"
    try:
        return run()
    except (UsageError, OSError) as error:
        _leave(f"{me}: {error}", 2)
    except Exception as error:
        runtime = isinstance(error, jax.errors.JaxRuntimeError)
        if not (runtime and lost_peer(error)):
            traceback.print_exc()
            _leave(f"{me} failed", 1)
        reason = " ".join(str(error).split())[:300]
        _leave(
            f"{me}: another process of the run was lost ({reason}); start the same "
            "command on every host: it goes on from what was saved",
            1,
        )


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
      UsageError: contradicting arguments, or other processes did not show up; with a
        coordinator, under SLURM and under Open MPI 5 they are named.
    """
    if mode not in ("auto", "on", "off"):
        raise UsageError(f"distributed must be auto, on or off, got {mode!r}")
    if coordinator and not (0 <= process_id < num_processes):
        raise UsageError(
            f"with coordinator {coordinator!r}, num_processes and process_id must be "
            f"given, 0 <= process_id < num_processes; got {process_id} of "
            f"{num_processes}"
        )
    announced = launchers.announced_processes(os.environ) > 1
    several = coordinator or announced or _on_tpu_machine()
    if mode == "off" or (mode == "auto" and not several):
        return
    task = launchers.find_task(os.environ)
    if coordinator:
        task = launchers.Task(coordinator, num_processes, process_id)
    arguments: dict[str, Any] = {}
    if task is not None:
        if not task.coordinator:
            raise UsageError(
                f"Open MPI does not say on which host process 0 of {task.count} is: "
                "give --coordinator=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE "
                "--process_id=$OMPI_COMM_WORLD_RANK to each"
            )
        check_peers(task.coordinator, task.count, task.number, connect_timeout)
        arguments = {
            "coordinator_address": task.coordinator,
            "num_processes": task.count,
            "process_id": task.number,
        }
        if task.local_number is not None:
            arguments["local_device_ids"] = [task.local_number]
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=connect_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except RuntimeError as error:
        raise UsageError(
            f"the processes of the run did not meet: {error}; start the same command "
            "on every host at about the same time"
        ) from error


def process_number() -> tuple[int, int]:
    """Returns the number of this process, from 0, and how many the run has.

    In a run of one process jax's devices are not looked for.
    """
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def check_peers(address: str, count: int, number: int, timeout: float) -> None:
    """Returns when all processes of a run have reported to process 0.

    It listens beside the coordinator, on the next port. When all are there, or the time
    is up, everyone hears the same list.

    Args:
      address: host:port of the coordinator; its next port is used.
      count: processes of the run.
      number: of this process, from 0.
      timeout: seconds to wait.

    Raises UsageError naming the missing processes, on every process that is there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"coordinator {address!r}: expected host:port")
    deadline = time.monotonic() + timeout
    if number == 0:
        missing = _listen(int(port) + 1, count, deadline)
    else:
        missing = _report(host, int(port) + 1, number, deadline)
    if missing:
        listed = ", ".join(map(str, missing))
        raise UsageError(
            f"of the {count} processes of the run, number {listed} did not start "
            f"within {timeout:.0f} s: start the same command on every host at about "
            f"the same time, and look whether they can reach {address}"
        )


def check_consistency(
    workdir, config: dict[str, Any], data_fingerprint: str | None
) -> None:
    """Compares what all processes have, and reads in `workdir` what each wrote there.

    Nothing is done in a run of one process. The comparison is also the first
    collective operation: where devices cannot reach each other, it is here that they
    fail.

    Args:
      workdir: of the run, which all processes must share.
      config: plain dict.
      data_fingerprint: of the data.

    Raises:
      UsageError: another config, code or data on some processes, or a workdir that is
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
        "code": _digest(sha256_folder(PACKAGE, "*.py")),
        "data": _digest(str(data_fingerprint)),
    }
    everyone = multihost_utils.process_allgather(found)
    shared = multihost_utils.process_allgather(np.array(probe.exists()))
    if jax.process_index() == 0:
        probe.unlink()
    refuse_differences(everyone)
    apart = np.flatnonzero(~shared)
    if len(apart):
        raise UsageError(
            f"process {_list(apart)} does not see what process 0 wrote to {workdir}: "
            "all processes need the same folder, on a disk or bucket that they share"
        )


def refuse_differences(everyone: Mapping[str, np.ndarray]) -> None:
    """Raises UsageError when processes differ.

    Args:
      everyone: what -> (processes, ...) digests.
    """
    for what, digests in everyone.items():
        others = np.flatnonzero((digests != digests[0]).any(1))
        if len(others):
            raise UsageError(
                f"process {_list(others)} has another {what} than process 0: start "
                "the same command, from the same version, on the same data everywhere"
            )


def lost_peer(error: Exception) -> bool:
    """Whether an error of the runtime means that another process is gone."""
    text = str(error).lower()
    return any(word in text for word in ("gloo", "peer", "heartbeat", "another task"))


def _on_tpu_machine() -> bool:
    """A TPU VM, whose metadata server tells jax the other hosts."""
    chips = pathlib.Path("/dev/accel0").exists() or pathlib.Path("/dev/vfio/0").exists()
    return (
        chips
        and importlib.util.find_spec("libtpu") is not None
        and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    )


def _listen(port: int, count: int, deadline: float) -> list[int]:
    """Hears who is there, tells all of them who is not, and returns that list.

    Each connection is read in a thread of its own: a health check or a port scanner
    that connects and says nothing must not keep the others waiting.
    """
    present: dict[int, socket.socket] = {}

    def enroll(connection: socket.socket) -> None:
        number = None
        with contextlib.suppress(OSError, ValueError):  # a stranger
            connection.settimeout(10)
            number = json.loads(connection.recv(16))
        if number in range(1, count):
            present[number] = connection
        else:
            connection.close()

    with socket.create_server(("", port), backlog=count) as server:
        server.settimeout(0.1)  # between two looks at who has come
        while len(present) < count - 1 and _left(deadline) > 0:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                threading.Thread(target=enroll, args=(connection,), daemon=True).start()
    missing = sorted(set(range(1, count)) - present.keys())
    for connection in list(present.values()):
        with contextlib.suppress(OSError), connection:  # one that has left already
            connection.sendall(json.dumps(missing).encode() + b"\n")
    return missing


def _report(host: str, port: int, number: int, deadline: float) -> list[int]:
    while _left(deadline) > 0:
        with contextlib.suppress(OSError):
            with socket.create_connection((host, port), timeout=5) as connection:
                connection.sendall(json.dumps(number).encode() + b"\n")
                # process 0 began to wait later than we, maybe
                connection.settimeout(_left(deadline) + 60)
                answer = connection.makefile().readline()
                if answer:
                    return json.loads(answer)
        time.sleep(0.2)
    return [0]


def _left(deadline: float) -> float:
    return deadline - time.monotonic()


def _digest(text: str) -> np.ndarray:
    """(8,) int32: process_allgather would round anything wider."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.int32)


def _list(numbers) -> str:
    return ", ".join(map(str, numbers))


def _leave(message: str, code: int):
    print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # leaving politely waits for processes that may be gone
