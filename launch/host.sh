#!/usr/bin/env bash
# What one host of a slice does; launch/tpu_vm.sh and launch/gce.sh call it on all of them.
#
#   launch/host.sh setup [BUCKET]    Python and the requirements; BUCKET appears as data/
#   launch/host.sh start --config=configs/paper/prior.py --workdir=gs://BUCKET/runs/prior
#   launch/host.sh start embed --config=configs/paper/embed.py --workdir=data/records
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

call() {
  if [ "$dry" ]; then echo "$*"; else "$@"; fi
}

running() { # and not a zombie: in a container nobody may have waited for it
  [ -f run.pid ] && ps -o stat= -p "$(cat run.pid)" | grep -qv Z
}

mount_bucket() {
  if ! command -v gcsfuse >/dev/null; then
    local list=https://packages.cloud.google.com/apt
    local key=/usr/share/keyrings/cloud.google.asc
    call sudo curl -fsSL -o "$key" "$list/doc/apt-key.gpg"
    call sudo sh -c "echo deb [signed-by=$key] $list gcsfuse-$(lsb_release -cs || echo jammy) main \
> /etc/apt/sources.list.d/gcsfuse.list"
    call sudo apt-get -q update
    call sudo apt-get -qy install gcsfuse
  fi
  call mkdir -p data
  mountpoint -q data || call gcsfuse --implicit-dirs "${1#gs://}" data
}

case "$action" in
  setup)
    # the images' own Python may be older than jax wants
    export PATH="$HOME/.local/bin:$PATH"
    command -v uv >/dev/null || call sh -c "curl -LsSf https://astral.sh/uv/install.sh | sh"
    call uv venv --quiet --allow-existing --python=3.12 .venv
    call uv pip install --quiet --python=.venv -r requirements-tpu.txt
    [ $# -eq 0 ] || mount_bucket "$1"
    ;;
  start)
    program=train
    case "${1:-}" in train | embed | evaluate) program=$1; shift ;; esac
    [ $# -gt 0 ] || { echo "error: $0 start: no flags for unclip_jax.$program" >&2; exit 2; }
    if running; then
      echo "error: process $(cat run.pid) runs already; $0 stop ends it" >&2
      exit 1
    fi
    if [ "$dry" ]; then
      echo ".venv/bin/python -m unclip_jax.$program $* > run.log"
      exit 0
    fi
    # a process that was killed leaves the lock of the TPU behind
    sudo -n rm -f /tmp/libtpu_lockfile 2>/dev/null || true
    # it shall outlive the connection that started it
    nohup setsid .venv/bin/python -m "unclip_jax.$program" "$@" >run.log 2>&1 </dev/null &
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
  help | -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0" ;;
  *) echo "error: $0: unknown command $action (setup, start, logs, stop)" >&2; exit 2 ;;
esac
