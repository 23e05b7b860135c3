#!/usr/bin/env bash
# A TPU VM slice: create it, set it up, train on all its workers, look, stop, delete.
#
#   export NAME=unclip ZONE=us-east5-a TYPE=v5p-128 REPOSITORY=https://... BUCKET=gs://...
#   launch/tpu_vm.sh create [--spot]   waits in the queue until the slice is there
#   launch/tpu_vm.sh setup             the code of REPOSITORY and what it needs, on every
#                                      worker; again, for new code or after a failure
#   launch/tpu_vm.sh run --config=configs/paper/prior.py --workdir=$BUCKET/runs/paper/prior
#   launch/tpu_vm.sh run embed --config=configs/paper/embed.py --workdir=runs/paper/records
#   launch/tpu_vm.sh logs              follows worker 0
#   launch/tpu_vm.sh stop              SIGTERM: every worker saves the same step
#   launch/tpu_vm.sh delete [--quiet]  asks first; the bucket stays
#
# --dry-run before the command prints what would be run. For v4 to v6e; newer TPUs come
# through Compute Engine (launch/gce.sh) or GKE (launch/gke).
set -euo pipefail

: "${NAME:=unclip}" "${ZONE:=us-east5-a}" "${TYPE:=v5p-128}"

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

on() { # at once: started on one only, a run waits for the others
  local worker=all
  [ "$1" = all ] || worker=0
  call gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$worker" \
    --command="$2"
}

create() {
  call gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" \
    --zone="$ZONE" --accelerator-type="$TYPE" --runtime-version="$image" "$@"
  local state=
  until [ "$dry" ] || [ "$state" = ACTIVE ]; do
    state=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
      --format="value(state.state)") || state=unknown
    echo "$NAME: $state"
    case "$state" in
      ACTIVE) ;;
      FAILED | SUSPEND* | DELET*) fail "there is no slice: $0 delete, and create again" ;;
      *) sleep 30 ;;
    esac
  done
}

delete() {
  call gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force "$@"
}

# shellcheck source=launch/slice.sh
. "$(dirname "$0")/slice.sh"
