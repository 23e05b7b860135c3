"""SLURM's job, with stand-ins for srun and scontrol and for the run itself."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
# srun's exit code is the highest of its tasks'
SRUN = """
echo "srun $*" >>calls
while case "$1" in --*) true ;; *) false ;; esac; do shift; done
exec "$@"
"""
# the job script is left running by a real requeue, which ends it a little later
SCONTROL = """
echo "scontrol $*" >>calls
test "$*" = "requeue $SLURM_JOB_ID"
touch requeued
"""
# a run that reads from `plan` what each start does: the step it saves and its exit code
PYTHON = """
if [ "$1" = -m ]; then
  read -r step code <plan
  sed -i 1d plan
  [ "$step" = 0 ] || printf '{"step": %d, "steps": 30, "done": %s}' \\
    "$step" "$([ "$step" = 30 ] && echo true || echo false)" >"$RUN/status.json"
  exit "$code"
fi
exec "$REAL_PYTHON" "$@"
"""


@pytest.fixture
def job(tmp_path):
    """job(starts, workdir): what SLURM does, and the exit code, of a job that it
    starts again when it was requeued; the output of all starts."""
    programs = {"bin/srun": SRUN, "bin/scontrol": SCONTROL, ".venv/bin/python": PYTHON}
    for name, script in programs.items():
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{script}")
        program.chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "launch").symlink_to(ROOT / "launch")

    def start(starts, workdir=tmp_path / "run"):
        (tmp_path / "plan").write_text("".join(f"{s} {c}\n" for s, c in starts))
        output = ""
        for restart in range(len(starts)):
            done = subprocess.run(
                [SCRIPT, "--config=c", f"--workdir={workdir}"],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                env={
                    **os.environ,
                    "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                    "PYTHONPATH": f"{tmp_path}:{ROOT}",
                    "REAL_PYTHON": sys.executable,
                    "RUN": str(tmp_path / "run"),
                    "SLURM_JOB_ID": "77",
                    "SLURM_RESTART_COUNT": str(restart),
                    "SLURM_CPUS_PER_TASK": "12",
                },
            )
            output += done.stdout + done.stderr
            if not (tmp_path / "requeued").exists():
                return restart + 1, done.returncode, output
            (tmp_path / "requeued").unlink()
        raise AssertionError(f"it is requeued after {len(starts)} starts\n{output}")

    return start


@pytest.mark.slow
def test_a_job_starts_again_until_its_run_is_done(job, tmp_path):
    """Stopped in time (0), killed by a lost peer (134), stopped, done."""
    starts = [(10, 0), (20, 134), (20, 0), (30, 0)]
    assert job(starts)[:2] == (4, 0)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls.count("scontrol requeue 77") == 3
    assert "--cpus-per-task=12 .venv/bin/python -m unclip_jax.train" in calls[0]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "ends_with"), [(2, 2), (134, 134), (0, 1)])
def test_a_job_that_saves_nothing_new_fails_after_three_starts(job, code, ends_with):
    count, last, output = job([(10, 0), *[(10, code)] * 4])
    assert (count, last) == (4, ends_with)
    assert f"3 starts in a row saved nothing new; the last ended with {code}" in output


@pytest.mark.slow
def test_a_run_that_gets_on_may_fail_any_number_of_times(job):
    failures = [pair for step in range(1, 5) for pair in ((step, 1), (step, 1))]
    assert job([*failures, (30, 0)])[:2] == (9, 0)


def test_a_done_run_in_a_bucket_is_not_requeued(job, tmp_path):
    """Its status is read there and not on the disk, where it is not."""
    bucket = tmp_path / "sitecustomize.py"
    bucket.write_text(
        f"import sys; sys.path.append({str(ROOT / 'tests' / 'training')!r})\n"
        "import bucket; objects = bucket.serve()\n"
        'objects.put("b/run/status.json", b\'{"step": 30, "done": true}\')\n'
    )
    assert job([(0, 0), (0, 0)], "gs://b/run")[:2] == (1, 0)


def test_a_job_outside_of_slurm_or_of_the_checkout_is_refused(job, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    for folder, message in (
        (tmp_path, "no job of SLURM: use sbatch"),
        (tmp_path / "run", "has no .venv/bin/python: sbatch from the folder"),
    ):
        done = subprocess.run(
            [SCRIPT, "--config=c", "--workdir=run"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.count("\n") == 1


def test_one_task_per_gpu_sees_them_all():
    flags = [SCRIPT, "--dry-run", "--config=c", "--workdir=it's"]
    said = subprocess.check_output(flags, text=True)
    assert "--gpu-bind=none --cpus-per-task=12 .venv/bin/python" in said
    refused = subprocess.run(flags[:-1], capture_output=True, text=True)
    assert refused.returncode == 2 and "--workdir=FOLDER" in refused.stderr
    given = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", SCRIPT.read_text(), re.M))
    assert given["ntasks-per-node"] == given["gpus-per-node"]
    assert "requeue" in given and given["signal"].startswith("TERM@")
