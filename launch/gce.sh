#!/usr/bin/env bash
# TPUs that come through Compute Engine (TPU7x; v5p and v6e too): one slice is a managed
# instance group with a workload policy.
#
#   export NAME=unclip ZONE=us-central1-c MACHINE=tpu7x-standard-4t TOPOLOGY=4x4x4 HOSTS=16
#   export REPOSITORY=https://... BUCKET=gs://...
#   launch/gce.sh create [--provisioning-model=SPOT ...]     flags of the instance template
#   launch/gce.sh setup
#   launch/gce.sh run --config=configs/paper/prior.py --workdir=$BUCKET/runs/prior
#   launch/gce.sh run embed --config=configs/paper/embed.py --workdir=data/records
#   launch/gce.sh logs                 follows the first host
#   launch/gce.sh stop                 SIGTERM: every host saves the same step
#   launch/gce.sh delete
#
# --dry-run before the command prints what would be run.
set -euo pipefail

dry=
[ "${1:-}" != --dry-run ] || { dry=1; shift; }
action=${1:-help}
[ $# -eq 0 ] || shift
: "${NAME:=unclip}" "${ZONE:=us-central1-c}" "${MACHINE:=tpu7x-standard-4t}"
: "${TOPOLOGY:=4x4x4}" "${HOSTS:=16}" "${FOLDER:=unclip_jax}"
: "${IMAGE_PROJECT:=ubuntu-os-accelerator-images}"
: "${IMAGE_FAMILY:=ubuntu-accel-2404-amd64-tpu-tpu7x}"
: "${REPOSITORY:=}" "${BRANCH:=main}" "${BUCKET:=}"
region=${ZONE%-*}

call() {
  if [ "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

hosts() { # names are made up by the group
  if [ "$dry" ]; then
    echo "$NAME-HOST"
  else
    gcloud compute instance-groups managed list-instances "$NAME" --zone="$ZONE" \
      --format="value(name)"
  fi
}

on() { # on each host at once: a run waits until all are there
  local host pids=() code=0
  for host in $1; do
    call gcloud compute ssh "$host" --zone="$ZONE" --command="$2" </dev/null &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || code=1; done
  return "$code"
}

case "$action" in
  create)
    call gcloud compute resource-policies create workload-policy "$NAME" \
      --region="$region" --type=HIGH_THROUGHPUT --accelerator-topology="$TOPOLOGY"
    call gcloud compute instance-templates create "$NAME" --machine-type="$MACHINE" \
      --image-family="$IMAGE_FAMILY" --image-project="$IMAGE_PROJECT" \
      --maintenance-policy=TERMINATE --scopes=cloud-platform "$@"
    project=PROJECT
    [ "$dry" ] || project=$(gcloud config get-value project)
    call gcloud compute instance-groups managed create "$NAME" --zone="$ZONE" \
      --size="$HOSTS" --template="$NAME" --default-action-on-vm-failure=do-nothing \
      --workload-policy="projects/$project/regions/$region/resourcePolicies/$NAME"
    ;;
  setup)
    [ "$REPOSITORY" ] || { echo "error: set REPOSITORY to the git URL to clone" >&2; exit 2; }
    on "$(hosts)" "rm -rf $FOLDER && git clone -q --depth=1 --branch=$BRANCH $REPOSITORY \
$FOLDER && $FOLDER/launch/host.sh setup $BUCKET"
    ;;
  run)
    [ $# -gt 0 ] || { echo "error: $0 run: give --config=FILE --workdir=FOLDER" >&2; exit 2; }
    on "$(hosts)" "$FOLDER/launch/host.sh start$(printf ' %q' "$@")"
    ;;
  logs) on "$(hosts | head -n 1)" "$FOLDER/launch/host.sh logs" ;;
  stop) on "$(hosts)" "$FOLDER/launch/host.sh stop" ;;
  delete)
    call gcloud compute instance-groups managed delete "$NAME" --zone="$ZONE" --quiet
    call gcloud compute instance-templates delete "$NAME" --quiet
    call gcloud compute resource-policies delete "$NAME" --region="$region" --quiet
    ;;
  help | -h | --help) sed -n '2,15s/^# \{0,1\}//p' "$0" ;;
  *)
    echo "error: $0: unknown command $action (create, setup, run, logs, stop, delete)" >&2
    exit 2
    ;;
esac
