"""What starts runs on pods: what dry runs print, the files' form, and one real host."""

import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
FLAGS = ("--config=configs/paper/prior.py", "--workdir=gs://b/it's")


def run(*command, code=0, cwd=ROOT, **env):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def write_program(path, script):
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def load(name):
    return yaml.safe_load((LAUNCH / name).read_text())


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="shellcheck is not installed"
)
def test_shellcheck_finds_nothing():
    scripts = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"]
    assert len(scripts) >= 6
    run("shellcheck", "--external-sources", *scripts)


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gce.sh", "host.sh"])
def test_help_lists_the_commands_and_others_are_refused(script):
    listed = run(LAUNCH / script, "help")
    for command in ("setup", "logs", "stop"):
        assert f"launch/{script} {command}" in listed
    assert "unknown command" in run(LAUNCH / script, "--dry-run", "frobnicate", code=2)


@pytest.mark.parametrize("flags", [["-n"], ["-n", "0"], ["-m", "x"], ["-p", "-1"]])
def test_a_small_pod_takes_numbers(flags):
    done = subprocess.run(
        [LAUNCH / "local.sh", *flags, "--dry-run"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"{flags[0]} takes a number of at least 1" in done.stderr


def test_a_tpu_vm_is_made_used_and_deleted_under_one_name():
    def said(*args, **env):
        return run(LAUNCH / "tpu_vm.sh", "--dry-run", *args, NAME="pod", **env)

    made = said("create", "--spot", TYPE="v5litepod-64")
    assert "queued-resources create pod --node-id=pod" in made
    assert "--accelerator-type=v5litepod-64" in made and made.endswith("--spot \n")
    assert "--runtime-version=v2-alpha-tpuv5-lite" in made
    setup = said("setup", REPOSITORY="https://host/r", BUCKET="gs://b")
    assert "ssh pod" in setup and "--worker=all" in setup
    assert setup.rstrip().endswith("host.sh\\ setup\\ gs://b")
    assert "rm" not in re.findall(r"[\w-]+", setup)
    assert "--worker=0" in said("logs") and "--worker=all" in said("stop")
    deleted = said("delete")  # gcloud asks, unless told not to
    assert "queued-resources delete pod" in deleted and "--quiet" not in deleted
    assert "--quiet" in said("delete", "--quiet")
    assert "REPOSITORY" in run(LAUNCH / "tpu_vm.sh", "setup", code=2, REPOSITORY="")
    assert "TYPE=v9-8" in run(LAUNCH / "tpu_vm.sh", "logs", code=2, TYPE="v9-8")


@pytest.mark.parametrize("state", ["ACTIVE", "FAILED", "SUSPENDED"])
def test_waiting_for_a_tpu_vm_fails_when_there_will_be_none(state, tmp_path):
    write_program(tmp_path / "gcloud", f'[ "$4" != describe ] || echo {state}')
    path = f"{tmp_path}:{os.environ['PATH']}"
    run(LAUNCH / "tpu_vm.sh", "create", PATH=path, code=int(state != "ACTIVE"))


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gce.sh"])
def test_flags_arrive_on_the_hosts_as_they_were_given(script, tmp_path):
    """A quote in a flag outlives two shells: this one, and the one behind ssh."""
    said = run(LAUNCH / script, "--dry-run", "run", *FLAGS)
    command = re.search(r"--command=(.*)", said).group(1).strip()
    remote = run("bash", "-c", f"printf %s {command}")
    assert remote.startswith("unclip_jax/launch/host.sh start ")
    arguments = remote.partition(" start ")[2]
    assert run("bash", "-c", f"printf '%s\\n' {arguments}").splitlines() == [*FLAGS]
    assert "--config=FILE" in run(LAUNCH / script, "--dry-run", "run", code=2)


def test_an_instance_group_gets_a_policy_a_template_and_a_size():
    said = run(
        *(LAUNCH / "gce.sh", "--dry-run", "create", "--provisioning-model=SPOT"),
        **dict(NAME="pod", ZONE="us-central1-c", TOPOLOGY="4x4x8", HOSTS="32"),
    ).splitlines()
    policy, template, group = said
    assert "workload-policy pod --region=us-central1" in policy
    assert "--accelerator-topology=4x4x8" in policy
    assert template.rstrip().endswith("--provisioning-model=SPOT")
    assert "--size=32" in group and "us-central1/resourcePolicies/pod" in group


def test_the_jobset_has_a_pod_for_every_host_of_its_slice():
    """Fields of JobSet v1alpha2, batch/v1 Job and GKE's TPU node pools."""
    found = load("gke/jobset.yaml")
    assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert found["kind"] == "JobSet" and found["metadata"]["name"]
    assert set(found["spec"]) <= {"failurePolicy", "network", "replicatedJobs"}
    (job,) = found["spec"]["replicatedJobs"]
    assert set(job) == {"name", "replicas", "template"}
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    chips = 1
    for size in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(size)
    (container,) = pod["containers"]
    resources = container["resources"]
    per_host = resources["limits"]["google.com/tpu"]
    assert resources["requests"] == resources["limits"]
    assert spec["parallelism"] == spec["completions"] == chips // per_host
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] > 60
    for name, read_only in (("data", True), ("runs", False)):  # as host.sh mounts them
        mount = next(m for m in container["volumeMounts"] if m["name"] == name)
        assert mount["mountPath"] == f"/unclip_jax/{name}"
        volume = next(v for v in pod["volumes"] if v["name"] == name)["csi"]
        assert f"only-dir={name}" in volume["volumeAttributes"]["mountOptions"]
        assert mount["readOnly"] == volume["readOnly"] == read_only
    config = next(c for c in container["command"] if c.startswith("--config="))
    assert (ROOT / config.partition("=")[2]).is_file()


def test_the_skypilot_job_recovers_and_names_files_that_exist():
    """Fields of SkyPilot's task YAML."""
    found = load("skypilot.yaml")
    assert set(found) <= {"name", "resources", "workdir", "envs", "setup", "run"}
    resources = found["resources"]
    known = {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery"}
    assert set(resources) <= known and resources["job_recovery"]["strategy"]
    assert "runtime_version" in resources["accelerator_args"]
    assert found["envs"]["BUCKET"] is None  # SkyPilot asks for it
    assert (ROOT / found["setup"].split()[0]).is_file()
    for stage in ("clip", "prior", "decoder"):
        assert (ROOT / f"configs/paper/{stage}.py").is_file()


def test_the_images_have_the_requirements_before_the_code():
    """So that a change of the code does not install everything again."""
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    targets = re.findall(r"^FROM \S+ AS (\w+)$", "\n".join(lines), re.M)
    assert set(targets) == {"base", "cuda", "tpu"}
    for name in re.findall(r"^COPY (\S+) \./$", "\n".join(lines), re.M):
        assert (ROOT / name).is_file()
    assert lines.index("COPY requirements.txt ./") < lines.index("COPY . .")


def test_a_host_starts_follows_and_stops_one_run(tmp_path):
    """With a stand-in for Python, which waits to be told to stop."""
    (tmp_path / "launch").mkdir()
    for name in ("supervise.sh", "accelerator.sh"):
        shutil.copy(LAUNCH / name, tmp_path / "launch")
    host = pathlib.Path(shutil.copy(LAUNCH / "host.sh", tmp_path / "launch"))
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(
        '#!/bin/bash\necho "got: $*"\ntrap "echo saved; exit 0" TERM\n'
        "for i in {1..300}; do sleep 0.1; done\n"
    )
    python.chmod(0o755)
    env = {"UNCLIP_START_WAIT": "0.5", "HOME": str(tmp_path)}
    log = tmp_path / "run.log"
    log.write_text("why the last run crashed\n")
    run(host, "start", *FLAGS, **env)
    assert "why the last run crashed" in log.read_text()
    assert f"got: -m unclip_jax.train {' '.join(FLAGS)}" in log.read_text()
    assert "runs already" in run(host, "start", *FLAGS, code=1, **env)
    run(host, "stop")
    for _ in range(50):
        if "saved" in log.read_text():
            break
        time.sleep(0.1)
    assert "saved" in log.read_text()
    time.sleep(0.3)
    assert "nothing runs here" in run(host, "stop")
    (tmp_path / "run.pid").write_text(str(os.getpid()))  # after a reboot, say
    assert "nothing runs here" in run(host, "stop")
    python.write_text("#!/bin/bash\necho no such config >&2\nexit 2\n")
    assert "no such config" in run(host, "start", *FLAGS, code=1, **env)


def test_a_host_runs_other_commands_than_training():
    said = run(LAUNCH / "host.sh", "--dry-run", "start", "embed", *FLAGS)
    assert f"-m unclip_jax.embed {' '.join(FLAGS)}" in said
    refused = run(LAUNCH / "host.sh", "--dry-run", "start", "embed", code=2)
    assert "no flags for unclip_jax.embed" in refused
