"""Setting hosts up, twice and more: the real scripts, git and mounts in a sandbox.

gcloud, uv and gcsfuse are stand-ins: gcloud runs what it would send to a host in a home
folder of this machine, gcsfuse mounts a folder, which stands for the bucket, with
`mount --bind`. All of it in a mount namespace of its own, so it needs root.
"""

import os
import pathlib
import shutil
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
OBJECTS = (
    "data/train/00000.tar",
    "data/validation/00000.tar",
    "runs/paper/clip/checkpoints/2000/state",
)
PROGRAMS = {
    # the command stands behind --command=; the hosts are h0 and h1
    "gcloud": """
        case "$*" in *list-instances*) echo h0; echo h1; exit ;; esac
        hosts=h0\\ h1
        case "$*" in *" h0 "*) hosts=h0 ;; *" h1 "*) hosts=h1 ;; esac
        case "$*" in *--worker=0*) hosts=h0 ;; esac
        for host in $hosts; do
          for word in "$@"; do
            case "$word" in --command=*)
              (cd "$SANDBOX/$host" && HOME=$PWD bash -c "${word#*=}") || exit 1 ;;
            esac
          done
        done""",
    "uv": "exit ${UV_CODE:-0}",
    "gcsfuse": """
        folder= options=bind
        while [ $# -gt 2 ]; do
          case "$1" in
            --only-dir=*) folder=${1#*=}; shift ;;
            -o) options=$options,$2; shift 2 ;;
            *) shift ;;
          esac
        done
        mount -o bind "$SANDBOX/buckets/$1/$folder" "$2"
        mount -o "remount,$options" "$2" """,
    "fails": 'if "$@"; then echo "this should have failed: $*"; exit 1; fi',
    "shell": """
        exec unshare --mount bash -euc "$1" """,
}


@pytest.fixture
def sandbox(tmp_path):
    """A folder with two hosts' homes, two buckets, a repository and the programs."""
    can_mount = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    if can_mount.returncode:
        pytest.skip("needs root and CAP_SYS_ADMIN, to mount")
    for name in OBJECTS:
        for bucket in ("pile", "other"):
            file = tmp_path / "buckets" / bucket / name
            file.parent.mkdir(parents=True)
            file.write_text(name)
    for host in ("h0", "h1"):
        (tmp_path / host).mkdir()
    (tmp_path / "bin").mkdir()
    for name, script in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    repository = tmp_path / "repository"
    shutil.copytree(LAUNCH, repository / "launch")
    (repository / "version").write_text("1")
    shell(tmp_path, "cd repository && git init -q -b main && git add . && " + COMMIT)
    return tmp_path


COMMIT = "git -c user.name=a -c user.email=a@b commit -qam x"


def shell(sandbox, script, code=0):
    """What a script says that runs in the sandbox with mounts of its own."""
    done = subprocess.run(
        [sandbox / "bin" / "shell", script],
        cwd=sandbox,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{sandbox / 'bin'}:{os.environ['PATH']}",
            "SANDBOX": str(sandbox),
            "REPOSITORY": f"file://{sandbox / 'repository'}",
            "BUCKET": "gs://pile",
            "GIT_CONFIG_GLOBAL": "/dev/null",
        },
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def objects(sandbox, bucket="pile"):
    root = sandbox / "buckets" / bucket
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@pytest.fixture(params=["tpu_vm.sh", "gce.sh"])
def setup(request):
    return f"{LAUNCH / request.param} setup"


def test_a_second_setup_brings_new_code_and_leaves_the_bucket_alone(sandbox, setup):
    shell(
        sandbox,
        f"""
        {setup}
        test "$(cat h1/unclip_jax/data/train/00000.tar)" = data/train/00000.tar
        test "$(cat h1/unclip_jax/runs/paper/clip/checkpoints/2000/state)"
        fails touch h1/unclip_jax/data/train/new
        mkdir h1/unclip_jax/runs/paper/records
        echo shard >h1/unclip_jax/runs/paper/records/shard
        echo mine >h1/unclip_jax/notes
        (cd repository && echo 2 >version && {COMMIT})
        {setup}
        test "$(cat h0/unclip_jax/version h1/unclip_jax/version)" = $'2\\n2'
        test "$(cat h1/unclip_jax/notes)" = mine
        rm -rf h0/unclip_jax
        {setup}
        """,
    )
    assert objects(sandbox) == sorted([*OBJECTS, "runs/paper/records/shard"])


def test_a_setup_that_failed_half_way_is_made_again(sandbox, setup):
    shell(
        sandbox,
        f"""
        UV_CODE=1 fails {setup}
        fails test -e h0/unclip_jax/data
        {setup}
        test -e h0/unclip_jax/data/train/00000.tar -a -e h1/unclip_jax/runs/paper
        """,
    )
    assert objects(sandbox) == sorted(OBJECTS)


def test_a_bucket_that_an_older_setup_mounted_in_the_checkout_stays(sandbox, setup):
    said = shell(
        sandbox,
        f"""
        (cd h0 && git clone -q $REPOSITORY unclip_jax && mkdir unclip_jax/data)
        mount --bind buckets/pile h0/unclip_jax/data
        fails {setup}
        umount h0/unclip_jax/data
        {setup}
        """,
    )
    assert "unclip_jax/data is in the place of the link" in said
    assert "fusermount -u data" in said
    assert objects(sandbox) == sorted(OBJECTS)


def test_a_folder_with_files_is_not_replaced_by_a_link(sandbox, setup):
    said = shell(
        sandbox,
        f"mkdir -p h0/unclip_jax/runs && echo 1 >h0/unclip_jax/runs/a\nfails {setup}\n"
        "test $(cat h0/unclip_jax/runs/a) = 1",
    )
    assert "unclip_jax/runs is in the place of the link" in said


def test_another_bucket_is_not_mixed_up_with_the_first(sandbox, setup):
    said = shell(
        sandbox,
        f"""
        {setup}
        BUCKET=gs://other fails {setup}
        umount h*/bucket/data h*/bucket/runs
        BUCKET=gs://other {setup}
        echo 1 >h0/unclip_jax/runs/new
        """,
    )
    assert "gs://pile is mounted in" in said
    assert objects(sandbox) == sorted(OBJECTS)
    assert objects(sandbox, "other") == sorted([*OBJECTS, "runs/new"])


def test_a_bucket_of_which_half_was_mounted_is_remembered(sandbox, setup):
    (sandbox / "buckets/half/data").mkdir(parents=True)
    said = shell(
        sandbox,
        f"""
        BUCKET=gs://half fails {setup}
        BUCKET=gs://other fails {setup}
        umount h*/bucket/data
        BUCKET=gs://other {setup}
        """,
    )
    assert "gs://half is mounted in" in said


def test_code_that_was_changed_on_a_host_is_not_overwritten(sandbox, setup):
    said = shell(
        sandbox,
        f"""
        {setup}
        echo mine >h0/unclip_jax/version
        (cd repository && echo 2 >version && {COMMIT})
        fails {setup}
        test "$(cat h0/unclip_jax/version)" = mine
        """,
    )
    assert "local changes" in said


def test_the_code_under_a_run_is_not_exchanged(sandbox, setup):
    said = shell(
        sandbox,
        f"""
        {setup}
        bash -c 'exec -a "python -m unclip_jax.train" sleep 30' &
        echo $! >h0/unclip_jax/run.pid
        sleep 0.2
        (cd repository && echo 2 >version && {COMMIT})
        fails {setup}
        test "$(cat h0/unclip_jax/version)" = 1
        kill $!
        """,
    )
    assert "a run goes on here" in said


def test_a_run_after_a_reboot_has_the_bucket_again(sandbox):
    """And does not write into an empty folder in its place."""
    shell(
        sandbox,
        f"""
        {LAUNCH}/tpu_vm.sh setup
        umount h0/bucket/data h0/bucket/runs
        mkdir -p h0/unclip_jax/.venv/bin
        printf '#!/bin/bash\\necho 1 >runs/new\\n' >h0/unclip_jax/.venv/bin/python
        chmod +x h0/unclip_jax/.venv/bin/python
        HOME=$PWD/h0 UNCLIP_START_WAIT=0.5 fails h0/unclip_jax/launch/host.sh start --x
        """,
    )
    assert objects(sandbox) == sorted([*OBJECTS, "runs/new"])
