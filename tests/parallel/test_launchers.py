"""What SLURM's and Open MPI's variables say of a process, and who is missing."""

import os
import subprocess
import sys

import pytest

from tests.environment import environment
from unclip_jax.parallel import distributed, launchers
from unclip_jax.parallel.launchers import Task, announced_processes, find_task

SLURM = {
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_NODELIST": "node[003-004,7],b2",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_NAMESPACE": "prterun-host-77@1",
}
INITIALIZE = """
from unclip_jax.command_line import run
from unclip_jax.parallel.distributed import process_number
run(lambda args: print(process_number()), config=False, distributed=True)
"""


def test_launchers_announce_their_processes():
    assert announced_processes({}) == 1
    assert announced_processes(SLURM) == 8
    assert announced_processes({"TPU_WORKER_HOSTNAMES": "a,b"}) == 2


@pytest.mark.parametrize(
    "nodes,first",
    [
        ("n7", "n7"),
        ("n7,b2", "n7"),
        ("node[003-004,7],b2", "node003"),
        ("node[12,15-20]", "node12"),
    ],
)
def test_process_0_of_slurm_is_on_the_first_node(nodes, first):
    task = find_task({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert task == Task(f"{first}:{61440 + 2 * 123}", 8, 5)


def test_ports_differ_by_job_and_leave_the_next_one_free():
    jobs = range(1, 5000)
    ports = [
        int(find_task({**SLURM, "SLURM_JOB_ID": str(i)}).coordinator.split(":")[1])
        for i in jobs
    ]
    assert (
        len(set(ports)) == 2047 and max(ports) < 65535 and not any(p % 2 for p in ports)
    )
    own = find_task({**SLURM, "JAX_COORDINATOR_PORT": "1234"})
    assert own.coordinator == "node003:1234"


def test_open_mpi_5_is_known_on_one_host():
    here = find_task({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
    host, _, port = here.coordinator.partition(":")
    assert (host, here.count, here.number, here.local_number) == ("localhost", 2, 1, 1)
    assert 61440 <= int(port) < 65535
    assert find_task({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}).coordinator == ""
    assert (
        find_task({**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://1.2.3.4:5"}) is None
    )


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_STEP_NODELIST"])
def test_a_shell_in_a_job_of_slurm_is_one_process(missing):
    assert find_task({k: v for k, v in SLURM.items() if k != missing}) is None
    assert find_task({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_who_is_missing_is_named(monkeypatch):
    found = Task("localhost:0", 3, 1)
    monkeypatch.setattr(launchers, "find_task", lambda _: found)
    with pytest.raises(ValueError, match="number 0 did not start within 1 s"):
        distributed.initialize("on", connect_timeout=0.6)
    monkeypatch.setattr(launchers, "find_task", lambda _: Task("", 3, 1))
    with pytest.raises(ValueError, match="give --coordinator=HOST:PORT"):
        distributed.initialize("on")


@pytest.mark.multiprocess
def test_processes_of_open_mpi_5_meet():
    more = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    more["PMIX_NAMESPACE"] = str(os.getpid())
    running = []
    for rank in ("0", "1"):
        more |= {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", INITIALIZE],
                env=environment(1, **more),
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    assert [p.communicate(timeout=120)[0] for p in running] == ["(0, 2)\n", "(1, 2)\n"]
