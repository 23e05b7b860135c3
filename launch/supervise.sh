#!/usr/bin/env bash
# Starts a command of unclip_jax again until it ends well.
#
#   launch/supervise.sh .venv/bin/python -m unclip_jax.train --config=... --workdir=...
#
# It goes on from what it saved. After UNCLIP_TRIES (3) starts in a row that saved nothing
# new it is left, with its exit code; a mistake in what was asked (2, at the first start)
# ends it at once, and so do SIGTERM and Ctrl-C, which are passed on. UNCLIP_PAUSE (10)
# seconds lie between two starts, in which the other hosts notice too.
set -u

workdir=
for flag in "$@"; do
  case "$flag" in --workdir=*) workdir=${flag#--workdir=} ;; esac
done

saved() { # what is there of a run: its last step, or the shards of records
  "$1" -c 'import pathlib, sys
from unclip_jax.training.run_folder import read_status
step = read_status(sys.argv[1])["step"]
print(step or len(list(pathlib.Path(sys.argv[1]).glob("*/*.array_record"))))' "$workdir" \
    2>/dev/null | grep -x "[0-9]*" || echo 0
}

child='' stopped='' count=0 last=-1
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
while :; do
  "$@" &
  child=$!
  wait "$child"
  code=$?
  while [ "$stopped" ] && kill -0 "$child" 2>/dev/null; do # the trap ended the wait
    wait "$child"
    code=$?
  done
  child=
  if [ "$stopped" ] || [ "$code" -eq 0 ]; then exit "$code"; fi
  if [ "$code" -eq 2 ] && [ "$last" -lt 0 ]; then exit 2; fi
  now=$(saved "$1")
  if [ "$now" -gt "$last" ]; then count=1; else count=$((count + 1)); fi
  last=$now
  if [ "$count" -ge "${UNCLIP_TRIES:-3}" ]; then
    echo "error: $count starts in a row saved nothing new; the last ended with $code" >&2
    exit "$code"
  fi
  echo "--- $(date -u +%FT%TZ) ended with $code, at $now; starting again" >&2
  sleep "${UNCLIP_PAUSE:-10}" &
  child=$!
  wait "$child"
  child=
  [ -z "$stopped" ] || exit "$code"
done
