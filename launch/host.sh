#!/usr/bin/env bash
# What one host of a slice does; launch/tpu_vm.sh and launch/gce.sh call it on all of them.
#
#   launch/host.sh setup [BUCKET]    Python and the requirements; of the bucket, data/ to
#                                    be read and runs/ to be written appear in this folder
#   launch/host.sh start --config=configs/paper/prior.py --workdir=gs://BUCKET/runs/paper/prior
#   launch/host.sh start embed --config=configs/paper/embed.py --workdir=runs/paper/records
#                                    and again when it fails, see launch/supervise.sh
#   launch/host.sh logs              follows run.log
#   launch/host.sh stop              SIGTERM: the run saves, on all hosts the same step
#
# --dry-run before the command prints what would be done.
set -euo pipefail
cd "$(dirname "$0")/.."

dry=
[ "${1:-}" != --dry-run ] || { dry=1; shift; }
action=${1:-help}
[ $# -eq 0 ] || shift
# The bucket is mounted outside of the checkout, which holds links only: whoever removes
# the checkout does not walk into the bucket.
mounts=$HOME/bucket

call() {
  if [ "$dry" ]; then echo "$*"; else "$@"; fi
}

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

running() { # not another process that got its number, nor a zombie
  [ -f run.pid ] && pgrep -F run.pid -f unclip_jax >/dev/null
}

install_gcsfuse() {
  local list=https://packages.cloud.google.com/apt
  local key=/usr/share/keyrings/cloud.google.asc
  call sudo curl -fsSL -o "$key" "$list/doc/apt-key.gpg"
  call sudo sh -c "echo deb [signed-by=$key] $list gcsfuse-$(lsb_release -cs || echo jammy) main \
> /etc/apt/sources.list.d/gcsfuse.list"
  call sudo apt-get -q update
  call sudo apt-get -qy install gcsfuse
}

check_links() {
  [ -z "$dry" ] || return 0
  for name in data runs; do
    [ -L "$name" ] || ! [ -e "$name" ] || rmdir "$name" 2>/dev/null ||
      fail "$PWD/$name is in the place of the link to the bucket. If an older setup \
mounted the bucket there (\`mountpoint $name\`): fusermount -u $name; else move it away"
  done
}

mount_folder() { # FOLDER of $bucket, then flags of gcsfuse
  local place=$mounts/$1
  call mkdir -p "$place"
  mountpoint -q "$place" ||
    call gcsfuse --implicit-dirs --only-dir="$1" "${@:2}" "$bucket" "$place"
  call ln -sfn "$place" "$1"
}

mount_bucket() { # again after a reboot; what is mounted stays
  local bucket=${1#gs://} before
  bucket=${bucket%/}
  check_links
  before=$(cat "$mounts/name" 2>/dev/null || echo "$bucket")
  if [ "$before" != "$bucket" ]; then
    for name in data runs; do
      ! mountpoint -q "$mounts/$name" || fail "gs://$before is mounted in $mounts/$name: \
fusermount -u $mounts/$name, then setup again"
    done
  fi
  # first, so that a mount that fails is not taken for one of another bucket later
  [ "$dry" ] || { mkdir -p "$mounts" && echo "$bucket" >"$mounts/name"; }
  # the data does not change under a run: what is known of its files is kept
  mount_folder data -o ro --stat-cache-max-size-mb=-1 --type-cache-max-size-mb=-1 \
    --metadata-cache-ttl-secs=-1
  mount_folder runs
}

case "$action" in
  setup)
    ! running || fail "process $(cat run.pid) runs here; $0 stop ends it"
    [ $# -eq 0 ] || check_links # before anything is done
    # the images' own Python may be older than jax wants
    export PATH="$HOME/.local/bin:$PATH"
    command -v uv >/dev/null || call sh -c "curl -LsSf https://astral.sh/uv/install.sh | sh"
    call uv venv --quiet --allow-existing --python=3.12 .venv
    call uv pip install --quiet --python=.venv -r requirements-tpu.txt
    if [ $# -gt 0 ]; then
      command -v gcsfuse >/dev/null || install_gcsfuse
      mount_bucket "$1"
    fi
    ;;
  start)
    program=train
    case "${1:-}" in train | embed | evaluate) program=$1; shift ;; esac
    [ $# -gt 0 ] || fail "$0 start: no flags for unclip_jax.$program" 2
    ! running || fail "process $(cat run.pid) runs already; $0 stop ends it"
    if [ "$dry" ]; then
      echo ".venv/bin/python -m unclip_jax.$program $* >> run.log"
      exit 0
    fi
    [ ! -f "$mounts/name" ] || mount_bucket "$(cat "$mounts/name")"
    # a process that was killed leaves the lock of the TPU behind
    sudo -n rm -f /tmp/libtpu_lockfile 2>/dev/null || true
    echo "--- $(date -u +%FT%TZ) unclip_jax.$program $*" >>run.log
    workdir=
    for flag in "$@"; do
      case "$flag" in --workdir=*) workdir=${flag#--workdir=} ;; esac
    done
    # shellcheck source=launch/accelerator.sh
    . launch/accelerator.sh tpu "$workdir"
    # it shall outlive the connection that started it
    nohup setsid launch/supervise.sh .venv/bin/python -m "unclip_jax.$program" "$@" \
      >>run.log 2>&1 </dev/null &
    echo $! >run.pid
    sleep "${UNCLIP_START_WAIT:-5}"
    if ! running; then
      echo "error: it ended at once:" >&2
      tail -n 5 run.log >&2
      exit 1
    fi
    ;;
  logs) call tail -n 50 -F run.log ;;
  stop)
    if running; then call kill -TERM "$(cat run.pid)"; else echo "nothing runs here"; fi
    ;;
  help | -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;;
  *) fail "$0: unknown command $action (setup, start, logs, stop)" 2 ;;
esac
