#!/usr/bin/env bash
# N processes with M virtual CPU devices each, on this machine: a small pod.
#
#   launch/local.sh -n 2 -m 4 python -m unclip_jax.train \
#       --config=configs/icons/prior.py --workdir=runs/prior --config.mesh.fsdp=4
#
# -n PROCESSES (2)  -m DEVICES per process (4)  -p PORT of the coordinator  --dry-run
# SIGTERM and Ctrl-C are passed on. When a process fails the others get 30 seconds to
# notice; the exit code is the first one that is not 0.
set -u

processes=2 devices=4 port=$((20000 + RANDOM % 20000)) dry=
while [ $# -gt 0 ]; do
  case "$1" in
    -n | -m | -p)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || {
        echo "error: $0: $1 takes a number of at least 1, got '${2:-}'" >&2
        exit 2
      }
      case "$1" in -n) processes=$2 ;; -m) devices=$2 ;; -p) port=$2 ;; esac
      shift 2
      ;;
    --dry-run) dry=1; shift ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "error: $0: unknown option $1 (see --help)" >&2; exit 2 ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || { echo "error: $0: no command (see --help)" >&2; exit 2; }

export UNCLIP_CPU_DEVICES=$devices
unset XLA_FLAGS  # see env.sh
# shellcheck source=launch/env.sh
. "$(dirname "$0")/env.sh"

pids=()
for ((i = 0; i < processes; i++)); do
  command=("$@" "--distributed=on" "--coordinator=localhost:$port"
    "--num_processes=$processes" "--process_id=$i")
  if [ "$dry" ]; then
    echo "XLA_FLAGS=$XLA_FLAGS ${command[*]}"
    continue
  fi
  "${command[@]}" &
  pids+=($!)
done
[ -z "$dry" ] || exit 0

trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM
trap 'kill -INT "${pids[@]}" 2>/dev/null' INT
code=0
for ((left = processes; left > 0; left--)); do
  wait -n "${pids[@]}" 2>/dev/null  # those that have ended are no jobs any more
  found=$?
  # a trapped signal interrupts the wait without any process having ended
  while [ "$found" -gt 128 ] && [ "$(jobs -rp | wc -l)" -ge "$left" ]; do
    wait -n "${pids[@]}" 2>/dev/null
    found=$?
  done
  if [ "$found" -ne 0 ] && [ "$code" -eq 0 ]; then
    code=$found
    (sleep 30 && kill -KILL "${pids[@]}" 2>/dev/null) &
    watchdog=$!
  fi
done
[ -z "${watchdog:-}" ] || kill "$watchdog" 2>/dev/null
exit "$code"
