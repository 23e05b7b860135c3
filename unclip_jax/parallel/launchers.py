"""What launchers tell each process of a run through environment variables.

jax reads them as well, but knows no Open MPI 5, and aborts without a name where a
process is missing. With a `Task` the processes can be counted before jax is asked.
"""

import dataclasses
import re
import zlib
from collections.abc import Mapping

# Variable -> how many processes it announces.
_COUNTS = {
    "SLURM_STEP_NUM_TASKS": int,
    "OMPI_COMM_WORLD_SIZE": int,
    "TPU_WORKER_HOSTNAMES": lambda names: len(names.split(",")),
}
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
_OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"  # of which jax knows what to do


@dataclasses.dataclass(frozen=True)
class Task:
    """A process among those of its run.

    Attributes:
      coordinator: host:port of process 0, the same in all; "" where nobody says.
      count: processes of the run; number: of this one, from 0.
      local_number: of its GPU; None leaves that to jax.
    """

    coordinator: str
    count: int
    number: int
    local_number: int | None = None


def announced_processes(environment: Mapping[str, str]) -> int:
    """Processes that the launcher's environment variables announce (1 if none do)."""
    counts = [
        count(environment[name])
        for name, count in _COUNTS.items()
        if environment.get(name)
    ]
    return max(counts, default=1)


def find_task(environment: Mapping[str, str]) -> Task | None:
    """What SLURM or Open MPI 5 says of this process; None where neither does.

    Process 0 is on the first node of SLURM's list. Open MPI 5 says where only if all
    processes are on one host.
    """

    def number(name):
        return int(environment[name])

    if _count(environment, "SLURM_STEP_NUM_TASKS", _SLURM) > 1:
        host = _first_node(environment["SLURM_STEP_NODELIST"])
        port = _port(environment, number("SLURM_JOB_ID"))
        count, mine = number("SLURM_STEP_NUM_TASKS"), number("SLURM_PROCID")
        return Task(f"{host}:{port}", count, mine)
    count = _count(environment, "OMPI_COMM_WORLD_SIZE", _OPEN_MPI)
    if count > 1 and not environment.get(_OPEN_MPI_4):
        job = environment.get("PMIX_NAMESPACE", "")
        here = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(count)
        port = _port(environment, zlib.crc32(job.encode()))
        coordinator = f"localhost:{port}" if here else ""
        return Task(coordinator, count, *map(number, _OPEN_MPI))
    return None


def _count(environment, name: str, others: tuple[str, ...]) -> int:
    """What the variable says; 0 unless it and the others are there."""
    return int(environment[name]) if all(map(environment.get, (name, *others))) else 0


def _first_node(nodes: str) -> str:
    """node001 of "node001", "node001,b2", "node[001-15,20],b2" and "node[001,7]"."""
    ((prefix, first),) = re.findall(r"^([^,\[]*)(?:\[([^,\]-]*))?", nodes)
    return prefix + first


def _port(environment, job: int) -> int:
    """Of a job; the next one is free for counting the processes."""
    return int(environment.get("JAX_COORDINATOR_PORT") or 61440 + 2 * (job % 2047))
