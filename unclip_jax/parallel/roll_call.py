"""Who is missing? Asked over plain TCP before jax is, which would not say.

Process 0 listens beside the coordinator, on the next port; the others report to it.
When all are there, or the time is up, everyone hears the same list. (jax itself aborts
a process whose run is not complete in time, without naming the absent ones.)
"""

import contextlib
import json
import socket
import threading
import time


def roll_call(address: str, count: int, number: int, timeout: float) -> None:
    """Returns when all processes of a run have reported.

    Args:
      address: host:port of the coordinator; its next port is used.
      count: processes of the run.
      number: of this process, from 0.
      timeout: seconds to wait.

    Raises ValueError naming the missing processes, on every process that is there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator {address!r}: expected host:port")
    deadline = time.monotonic() + timeout
    if number == 0:
        missing = _listen(int(port) + 1, count, deadline)
    else:
        missing = _report(host, int(port) + 1, number, deadline)
    if missing:
        listed = ", ".join(map(str, missing))
        raise ValueError(
            f"of the {count} processes of the run, number {listed} did not start "
            f"within {timeout:.0f} s: start the same command on every host at about "
            f"the same time, and look whether they can reach {address}"
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
