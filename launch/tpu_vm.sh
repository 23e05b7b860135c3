#!/usr/bin/env bash
# A TPU VM slice: create it, set it up, train on all its workers, look, stop, delete.
#
#   export NAME=unclip ZONE=us-east5-a TYPE=v5p-128 REPOSITORY=https://... BUCKET=gs://...
#   launch/tpu_vm.sh create [--spot]   waits in the queue until the slice is there
#   launch/tpu_vm.sh setup             clones REPOSITORY and installs, on every worker
#   launch/tpu_vm.sh run --config=configs/paper/prior.py --workdir=$BUCKET/runs/prior
#   launch/tpu_vm.sh run embed --config=configs/paper/embed.py --workdir=data/records
#   launch/tpu_vm.sh logs              follows worker 0
#   launch/tpu_vm.sh stop              SIGTERM: every worker saves the same step
#   launch/tpu_vm.sh delete
#
# --dry-run before the command prints what would be run. For v4 to v6e; newer TPUs come
# through Compute Engine (launch/gce.sh) or GKE (launch/gke).
set -euo pipefail

dry=
[ "${1:-}" != --dry-run ] || { dry=1; shift; }
action=${1:-help}
[ $# -eq 0 ] || shift
: "${NAME:=unclip}" "${ZONE:=us-east5-a}" "${TYPE:=v5p-128}" "${FOLDER:=unclip_jax}"
: "${REPOSITORY:=}" "${BRANCH:=main}" "${BUCKET:=}"

case "$TYPE" in # the system's image
  v4-*) image=tpu-ubuntu2204-base ;;
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *)
    echo "error: TYPE=$TYPE: expected v4-N, v5litepod-N, v5p-N or v6e-N" >&2
    exit 2
    ;;
esac

call() {
  if [ "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

# Runs a command on every worker: started on one only, a run waits for the others.
on() {
  call gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" \
    --command="$2"
}

case "$action" in
  create)
    call gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" \
      --zone="$ZONE" --accelerator-type="$TYPE" --runtime-version="$image" "$@"
    until [ "$dry" ] || gcloud compute tpus queued-resources describe "$NAME" \
      --zone="$ZONE" --format="value(state.state)" | grep -E "ACTIVE|FAILED|SUSPENDED"; do
      sleep 30
    done
    ;;
  setup)
    [ "$REPOSITORY" ] || { echo "error: set REPOSITORY to the git URL to clone" >&2; exit 2; }
    on all "rm -rf $FOLDER && git clone -q --depth=1 --branch=$BRANCH $REPOSITORY $FOLDER \
&& $FOLDER/launch/host.sh setup $BUCKET"
    ;;
  run)
    [ $# -gt 0 ] || { echo "error: $0 run: give --config=FILE --workdir=FOLDER" >&2; exit 2; }
    on all "$FOLDER/launch/host.sh start$(printf ' %q' "$@")"
    ;;
  logs) on 0 "$FOLDER/launch/host.sh logs" ;;
  stop) on all "$FOLDER/launch/host.sh stop" ;;
  delete)
    call gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
    ;;
  help | -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0" ;;
  *)
    echo "error: $0: unknown command $action (create, setup, run, logs, stop, delete)" >&2
    exit 2
    ;;
esac
